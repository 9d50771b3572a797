// Replaces ${...} in titles, names and links as a dashboard does, as far as a picture shows it.
import type { InterpolateFunction, ScopedVars } from '@grafana/data';
import { getFieldDisplayName } from '@grafana/data';
import type { Sheet } from './model';

const PATTERN = /\$\{([^}:]+)(?::[^}]*)?\}|\$(\w+)/g;

function scoped(path: string, vars: ScopedVars): string | undefined {
  const context = vars.__dataContext?.value;
  if (!context) {
    return undefined;
  }
  const { field, frame, data } = context;
  const labels = field?.labels ?? {};
  if (path === '__field.name') {
    return field.name;
  }
  if (path === '__field.displayName' || path === '__field.label') {
    return getFieldDisplayName(field, frame, data);
  }
  const label = path.match(/^__field\.labels(?:\.(.+)|\["(.+)"\])$/);
  if (label) {
    return labels[label[1] ?? label[2]] ?? '';
  }
  if (path === '__field.labels') {
    return Object.values(labels).join(', ');
  }
  if (path === '__series.name') {
    return frame?.name ?? '';
  }
  const cell = path.match(/^__data\.fields(?:\.(.+)|\[["']?(.+?)["']?\])$/);
  if (cell && context.rowIndex !== undefined) {
    const key = cell[1] ?? cell[2];
    const named = frame.fields.find((one: any) => one.name === key) ?? frame.fields[Number(key)];
    return named === undefined ? '' : String(named.values[context.rowIndex]);
  }
  return undefined;
}

export function interpolator(sheet: Sheet): InterpolateFunction {
  return (text, vars = {}) =>
    (text ?? '').replace(PATTERN, (whole, braced, bare) => {
      const name: string = braced ?? bare;
      const found = scoped(name, vars) ?? vars[name]?.text ?? sheet.variables[name]?.text;
      return found === undefined ? whole : String(found);
    });
}
