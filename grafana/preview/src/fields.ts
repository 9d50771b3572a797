// From a query's frames to fields with units, thresholds, mappings, names and links, by @grafana/data.
// Grafana's application registers field options, panels' own options and transformations when it starts; so does this.
import {
  applyFieldOverrides,
  booleanOverrideProcessor,
  cacheFieldDisplayNames,
  type DataFrame,
  dataFrameFromJSON,
  dataLinksOverrideProcessor,
  displayNameOverrideProcessor,
  type Field,
  type FieldConfigPropertyItem,
  FieldConfigOptionsRegistry,
  FieldType,
  type GrafanaTheme2,
  identityOverrideProcessor,
  type InterpolateFunction,
  numberOverrideProcessor,
  standardFieldConfigEditorRegistry,
  standardTransformers,
  standardTransformersRegistry,
  stringOverrideProcessor,
  thresholdsOverrideProcessor,
  transformDataFrame,
  unitOverrideProcessor,
  valueMappingsOverrideProcessor,
} from '@grafana/data';
import { lastValueFrom } from 'rxjs';
import type { Panel, Sheet } from './model';

const always = () => true;
const onNumbers = (field: Field) => field.type === FieldType.number;

function item(id: string, process: any, shouldApply: (field: Field) => boolean = always, settings: any = {}) {
  const isCustom = id.startsWith('custom.');
  const path = isCustom ? id.slice('custom.'.length) : id;
  return { id, path, isCustom, name: id, description: '', process, shouldApply, settings } as unknown as FieldConfigPropertyItem;
}

const STANDARD = [
  item('displayName', displayNameOverrideProcessor, always, { expandTemplateVars: true }),
  item('unit', unitOverrideProcessor),
  item('min', numberOverrideProcessor, onNumbers),
  item('max', numberOverrideProcessor, onNumbers),
  item('fieldMinMax', booleanOverrideProcessor, onNumbers),
  item('decimals', numberOverrideProcessor, onNumbers),
  item('noValue', stringOverrideProcessor),
  item('color', identityOverrideProcessor, (field) => field.type !== FieldType.time),
  item('thresholds', thresholdsOverrideProcessor),
  item('mappings', valueMappingsOverrideProcessor),
  item('links', dataLinksOverrideProcessor),
  item('filterable', booleanOverrideProcessor),
];

const GRAPH = [
  'drawStyle', 'lineInterpolation', 'lineWidth', 'fillOpacity', 'gradientMode', 'fillBelowTo', 'lineStyle', 'spanNulls',
  'insertNulls', 'showPoints', 'pointSize', 'stacking', 'barAlignment', 'barWidthFactor', 'barMaxWidth', 'transform',
  'axisPlacement', 'axisLabel', 'axisWidth', 'axisSoftMin', 'axisSoftMax', 'axisGridShow', 'axisCenteredZero',
  'axisColorMode', 'axisBorderShow', 'scaleDistribution', 'hideFrom', 'thresholdsStyle',
];
const CUSTOM: Record<string, string[]> = {
  timeseries: GRAPH,
  barchart: GRAPH,
  histogram: GRAPH,
  piechart: ['hideFrom'],
  'state-timeline': ['lineWidth', 'fillOpacity', 'hideFrom', 'axisPlacement', 'axisLabel', 'axisWidth', 'axisSoftMin', 'axisSoftMax'],
  'status-history': ['lineWidth', 'fillOpacity', 'hideFrom', 'axisPlacement', 'axisLabel', 'axisWidth'],
  table: ['align', 'cellOptions', 'inspect', 'filterable', 'width', 'minWidth', 'hideFrom', 'hidden', 'footer', 'wrapHeaderText', 'wrapText', 'tooltip'],
};

/** A panel's own defaults: what Grafana's plugins fill in where the JSON says nothing. */
const DEFAULTS: Record<string, object> = {
  timeseries: {
    drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none', barAlignment: 0,
    barWidthFactor: 0.6, stacking: { mode: 'none', group: 'A' }, axisGridShow: true, axisCenteredZero: false,
    axisBorderShow: false, axisPlacement: 'auto', spanNulls: false, insertNulls: false, showPoints: 'auto', pointSize: 5,
    hideFrom: { legend: false, tooltip: false, viz: false }, scaleDistribution: { type: 'linear' },
    thresholdsStyle: { mode: 'off' },
  },
  barchart: { fillOpacity: 80, lineWidth: 1, gradientMode: 'none' },
  histogram: { fillOpacity: 80, lineWidth: 1, gradientMode: 'none' },
  table: { align: 'auto', cellOptions: { type: 'auto' }, inspect: false },
};
const PALETTE = new Set(['timeseries', 'barchart', 'histogram', 'piechart']);

export function register() {
  standardFieldConfigEditorRegistry.setInit(() => STANDARD);
  standardTransformersRegistry.setInit(() =>
    Object.values(standardTransformers).map((one: any) => ({
      id: one.id,
      name: one.name,
      aliasIds: undefined,
      transformation: () => Promise.resolve(one),
      editor: () => null as any,
      imageDark: '',
      imageLight: '',
    }))
  );
}

function registryFor(panel: Panel) {
  const custom = (CUSTOM[panel.type] ?? []).map((key) => item(`custom.${key}`, identityOverrideProcessor));
  const registry = new FieldConfigOptionsRegistry();
  registry.setInit(() => [...STANDARD, ...custom]);
  for (const rule of panel.fieldConfig?.overrides ?? []) {
    for (const property of rule.properties) {
      if (!registry.getIfExists(property.id)) {
        console.warn(`panel "${panel.title}": a ${panel.type} knows no property ${property.id}`);
      }
    }
  }
  return registry;
}

/** The panel's frames, transformed and with their display rules, ready to be drawn. */
export async function framesOf(
  panel: Panel,
  sheet: Sheet,
  theme: GrafanaTheme2,
  replace: InterpolateFunction
): Promise<DataFrame[]> {
  let frames: DataFrame[] = (sheet.frames[String(panel.id)] ?? []).map((one) => dataFrameFromJSON(one));
  const steps = (panel.transformations ?? []).filter((one) => !one.disabled);
  if (steps.length > 0) {
    frames = await lastValueFrom(transformDataFrame(steps, frames, { interpolate: (text: string) => replace(text) } as any));
  }
  const config = panel.fieldConfig ?? { defaults: {}, overrides: [] };
  const color = PALETTE.has(panel.type) ? { mode: 'palette-classic' } : { mode: 'thresholds' };
  const thresholds: any = { mode: 'absolute', steps: [{ color: 'green', value: -Infinity }, { color: 'red', value: 80 }] };
  const defaults: any = { color, thresholds, mappings: [], ...config.defaults };
  defaults.thresholds = withFloor(defaults.thresholds);
  defaults.custom = { ...DEFAULTS[panel.type], ...config.defaults.custom };
  const shown = applyFieldOverrides({
    data: frames,
    fieldConfig: { defaults, overrides: config.overrides.map(overrideWithFloor) },
    fieldConfigRegistry: registryFor(panel),
    replaceVariables: replace,
    theme,
    timeZone: sheet.dashboard.timezone ?? 'utc',
  });
  // Tables read a column's title from here.
  cacheFieldDisplayNames(shown);
  return shown;
}

/** JSON has no -Infinity: the first step of thresholds is stored as null. */
function withFloor(thresholds: any) {
  const steps = (thresholds.steps ?? []).map((step: any) => ({ ...step, value: step.value ?? -Infinity }));
  return { ...thresholds, steps };
}

function overrideWithFloor(rule: any) {
  const properties = rule.properties.map((one: any) =>
    one.id === 'thresholds' ? { ...one, value: withFloor(one.value) } : one
  );
  return { ...rule, properties };
}
