// @grafana/ui has no pie chart (its application draws it): slices as SVG, the legend is Grafana's.
import { type FieldDisplay, formattedValueToString } from '@grafana/data';
import { useTheme2, VizLayout, VizLegend } from '@grafana/ui';
import { arc } from './arcs';
import { useDisplays, type VizProps } from './panels';

export function Pie(props: VizProps) {
  const options = props.panel.options ?? {};
  const legend = { showLegend: true, displayMode: 'list', placement: 'right', values: [], ...options.legend };
  const displays = useDisplays(props)
    .filter((one) => one.display.numeric > 0)
    .sort((a, b) => (options.sort === 'asc' ? a.display.numeric - b.display.numeric : b.display.numeric - a.display.numeric));
  const total = displays.reduce((sum, one) => sum + one.display.numeric, 0);
  const items = displays.map((one) => ({
    label: one.display.title ?? '',
    color: one.display.color,
    yAxis: 1,
    getDisplayValues: () => legendValues(one, total, legend.values),
  }));
  const drawn = legend.showLegend ? (
    <VizLayout.Legend placement={legend.placement} width={legend.width}>
      <VizLegend items={items} placement={legend.placement} displayMode={legend.displayMode} readonly />
    </VizLayout.Legend>
  ) : null;
  return (
    <VizLayout width={props.width} height={props.height} legend={drawn}>
      {(width, height) => <Slices {...{ displays, total, width, height, options }} />}
    </VizLayout>
  );
}

function legendValues(one: FieldDisplay, total: number, asked: string[]) {
  const values = [];
  if (asked.includes('value')) {
    values.push({ ...one.display, title: 'Value' });
  }
  if (asked.includes('percent')) {
    const share = one.display.numeric / total;
    values.push({ numeric: share, text: `${Math.round(share * 100)}`, suffix: '%', percent: share, title: 'Percent' });
  }
  return values;
}

function Slices({ displays, total, width, height, options }: any) {
  const theme = useTheme2();
  const outer = Math.max(Math.min(width, height) / 2 - 8, 10);
  const inner = options.pieType === 'donut' ? outer * 0.6 : 0;
  const labels: string[] = options.displayLabels ?? [];
  let angle = 0;
  return (
    <svg width={width} height={height}>
      <g transform={`translate(${width / 2}, ${height / 2})`} stroke={theme.colors.background.primary} strokeWidth={1}>
        {displays.map((one: FieldDisplay, index: number) => {
          const from = angle;
          const share = one.display.numeric / total;
          angle += share * 2 * Math.PI;
          const middle = (from + angle) / 2;
          const radius = inner ? (inner + outer) / 2 : outer * 0.65;
          return (
            <g key={index}>
              <path d={arc(inner, outer, from, angle)} fill={one.display.color} />
              {labels.length > 0 && share > 0.04 && (
                <text
                  x={radius * Math.sin(middle)}
                  y={-radius * Math.cos(middle)}
                  textAnchor="middle"
                  dominantBaseline="central"
                  fontSize={12}
                  fill={theme.colors.getContrastText(one.display.color ?? '#000')}
                  stroke="none"
                >
                  {label(one, share, labels)}
                </text>
              )}
            </g>
          );
        })}
      </g>
    </svg>
  );
}

function label(one: FieldDisplay, share: number, labels: string[]) {
  const parts = [];
  if (labels.includes('name')) {
    parts.push(one.display.title);
  }
  if (labels.includes('value')) {
    parts.push(formattedValueToString(one.display));
  }
  if (labels.includes('percent')) {
    parts.push(`${Math.round(share * 100)}%`);
  }
  return parts.join(' ');
}
