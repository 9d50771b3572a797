// The page: a dashboard's head, its rows and its panels, laid out as Grafana lays them out.
import { css } from '@emotion/css';
import { createTheme, type DataFrame, dateTimeFormat, ThemeContext } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { GlobalStyles, Icon, PanelChrome, PortalContainer, ToolbarButton } from '@grafana/ui';
import { Component, type ReactNode } from 'react';
import { createRoot } from 'react-dom/client';
import 'uplot/dist/uPlot.min.css';
import { framesOf, register } from './fields';
import type { Dashboard, GridPos, Panel, Sheet } from './model';
import { EDGE_TO_EDGE, Viz } from './panels';
import { interpolator } from './variables';

const COLUMNS = 24;
const ROW = 30;
const GAP = 8;
const LABEL = "Preview, drawn from sample data by Grafana's components, outside Grafana";

const theme = createTheme({ colors: { mode: 'dark' } });

const styles = {
  page: css({ background: theme.colors.background.canvas, padding: theme.spacing(0, 2, 2), minHeight: 100 }),
  top: css({
    display: 'flex',
    alignItems: 'center',
    gap: theme.spacing(1),
    height: 48,
    margin: theme.spacing(0, -2),
    padding: theme.spacing(0, 2),
    background: theme.colors.background.primary,
    borderBottom: `1px solid ${theme.colors.border.weak}`,
    color: theme.colors.text.secondary,
    '& strong': { color: theme.colors.text.primary, fontWeight: 500 },
  }),
  badge: css({
    marginLeft: 'auto',
    padding: theme.spacing(0.25, 1),
    borderRadius: theme.shape.radius.pill,
    border: `1px solid ${theme.colors.border.medium}`,
    fontSize: theme.typography.bodySmall.fontSize,
  }),
  controls: css({ display: 'flex', flexWrap: 'wrap', gap: theme.spacing(1), padding: theme.spacing(2, 0), alignItems: 'center' }),
  right: css({ marginLeft: 'auto', display: 'flex', gap: theme.spacing(1) }),
  variable: css({ display: 'flex', height: 32, fontSize: theme.typography.bodySmall.fontSize }),
  label: css({
    display: 'flex',
    alignItems: 'center',
    padding: theme.spacing(0, 1),
    background: theme.colors.background.secondary,
    borderRadius: `${theme.shape.radius.default} 0 0 ${theme.shape.radius.default}`,
    border: `1px solid ${theme.components.input.borderColor}`,
    borderRight: 0,
    fontWeight: 500,
  }),
  value: css({
    display: 'flex',
    alignItems: 'center',
    justifyContent: 'space-between',
    gap: theme.spacing(1),
    minWidth: 100,
    maxWidth: 320,
    whiteSpace: 'nowrap',
    overflow: 'hidden',
    padding: theme.spacing(0, 1),
    background: theme.components.input.background,
    border: `1px solid ${theme.components.input.borderColor}`,
    borderRadius: `0 ${theme.shape.radius.default} ${theme.shape.radius.default} 0`,
    color: theme.components.input.text,
  }),
  row: css({ display: 'flex', alignItems: 'center', gap: theme.spacing(1), height: ROW, fontWeight: 500, fontSize: theme.typography.h5.fontSize, '& small': { color: theme.colors.text.secondary } }),
};

/** One broken panel shows its error and leaves the others alone. */
class Fence extends Component<{ children: ReactNode; title?: string }, { error?: Error }> {
  state: { error?: Error } = {};
  static getDerivedStateFromError(error: Error) {
    return { error };
  }
  componentDidCatch(error: Error) {
    console.error(`panel "${this.props.title}": ${error.message}`);
  }
  render() {
    return this.state.error ? <pre>{this.state.error.message}</pre> : this.props.children;
  }
}

/** Rows that are folded take their panels with them. */
function flat(dashboard: Dashboard): Panel[] {
  return dashboard.panels.flatMap((panel) => [panel, ...(panel.type === 'row' && !panel.collapsed ? panel.panels ?? [] : [])]);
}

function box({ x, y, w, h }: GridPos, width: number) {
  const column = (width - GAP * (COLUMNS - 1)) / COLUMNS;
  return {
    left: Math.round((column + GAP) * x),
    top: (ROW + GAP) * y,
    width: Math.round(column * w + GAP * (w - 1)),
    height: ROW * h + GAP * (h - 1),
  };
}

function Head({ sheet }: { sheet: Sheet }) {
  const { dashboard } = sheet;
  const when = (time: number) => dateTimeFormat(time, { format: 'YYYY-MM-DD HH:mm', timeZone: 'utc' });
  const asked = dashboard.time.from.match(/^now-(\d+)([mhdwM])$/);
  const units: Record<string, string> = { m: 'minute', h: 'hour', d: 'day', w: 'week', M: 'month' };
  const range =
    asked && dashboard.time.to === 'now'
      ? `Last ${asked[1]} ${units[asked[2]]}${asked[1] === '1' ? '' : 's'}`
      : `${when(sheet.from)} to ${when(sheet.to)}`;
  const variables = (dashboard.templating?.list ?? []).filter((one) => (one.hide ?? 0) < 2);
  return (
    <>
      <div className={styles.top}>
        <Icon name="apps" /> Dashboards <Icon name="angle-right" /> Metering <Icon name="angle-right" />
        <strong>{dashboard.title}</strong>
        <span className={styles.badge}>{LABEL}</span>
      </div>
      <div className={styles.controls}>
        {variables.map((one) => (
          <div key={one.name} className={styles.variable}>
            {one.hide !== 1 && <span className={styles.label}>{one.label || one.name}</span>}
            <span className={styles.value}>
              {sheet.variables[one.name]?.text ?? ''}
              {one.type !== 'textbox' && <Icon name="angle-down" />}
            </span>
          </div>
        ))}
        <div className={styles.right}>
          {(dashboard.links ?? []).map((link) => (
            <ToolbarButton key={link.title} icon={link.type === 'dashboards' ? 'bars' : 'external-link-alt'} variant="canvas">
              {link.title}
            </ToolbarButton>
          ))}
          <ToolbarButton icon="clock-nine" variant="canvas" isOpen={false}>
            {`${range} (UTC)`}
          </ToolbarButton>
          <ToolbarButton icon="sync" variant="canvas">
            {dashboard.refresh || undefined}
          </ToolbarButton>
        </div>
      </div>
    </>
  );
}

function Page({ sheet, width, frames }: { sheet: Sheet; width: number; frames: Map<number, DataFrame[]> }) {
  const panels = flat(sheet.dashboard);
  const replace = interpolator(sheet);
  const inner = width - 2 * 16;
  const bottom = Math.max(...panels.map((panel) => panel.gridPos.y + panel.gridPos.h));
  return (
    <div className={styles.page} style={{ width }}>
      <Head sheet={sheet} />
      <div style={{ position: 'relative', height: bottom * (ROW + GAP) - GAP }}>
        {panels.map((panel) => {
          const at = box(panel.gridPos, inner);
          if (panel.type === 'row') {
            return (
              <div key={panel.id} className={styles.row} style={{ position: 'absolute', ...at }}>
                <Icon name={panel.collapsed ? 'angle-right' : 'angle-down'} /> {replace(panel.title ?? '')}
                {panel.collapsed && <small>({panel.panels?.length ?? 0} panels)</small>}
              </div>
            );
          }
          return (
            <div key={panel.id} style={{ position: 'absolute', ...at }}>
              <PanelChrome
                title={replace(panel.title ?? '')}
                description={panel.description}
                width={at.width}
                height={at.height}
                displayMode={panel.transparent ? 'transparent' : 'default'}
                hoverHeader={!panel.title}
                padding={EDGE_TO_EDGE.has(panel.type) ? 'none' : 'md'}
              >
                {(width, height) => (
                  <Fence title={panel.title}>
                    <Viz {...{ panel, frames: frames.get(panel.id) ?? [], width, height, sheet, replace }} />
                  </Fence>
                )}
              </PanelChrome>
            </div>
          );
        })}
      </div>
    </div>
  );
}

/** Draws the sheet into the page; called by draw.mjs. */
async function draw(sheet: Sheet, width: number) {
  register();
  await initPluginTranslations('preview');
  const replace = interpolator(sheet);
  const frames = new Map<number, DataFrame[]>();
  for (const panel of flat(sheet.dashboard)) {
    frames.set(panel.id, await framesOf(panel, sheet, theme, replace));
  }
  const root = createRoot(document.getElementById('root')!);
  root.render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
    </ThemeContext.Provider>
  );
  await typefaces();
  root.render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PortalContainer />
      <Page sheet={sheet} width={width} frames={frames} />
    </ThemeContext.Provider>
  );
}

/** Components measure text before they draw it, so the typeface has to be there before the first one is. */
async function typefaces() {
  await new Promise((done) => setTimeout(done, 200));
  await Promise.all(['400 14px Inter', '500 14px Inter'].map((font) => document.fonts.load(font)));
}

(window as any).drawSheet = draw;
