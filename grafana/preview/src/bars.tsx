// @grafana/ui has no bar chart and no histogram (its application draws them): bars as SVG, the legend is Grafana's.
import { type DataFrame, type Field, FieldType, formattedValueToString, getFieldSeriesColor } from '@grafana/data';
import { measureText, useTheme2, VizLayout, VizLegend } from '@grafana/ui';
import { nameOf, type VizProps } from './panels';

const FONT = 12;

export function Bars(props: VizProps) {
  const theme = useTheme2();
  const options = props.panel.options ?? {};
  const frame = props.frames[0];
  const legend = { showLegend: true, displayMode: 'list', placement: 'bottom', ...options.legend };
  const series = frame.fields.filter((field) => field.type === FieldType.number && !field.config.custom?.hideFrom?.viz);
  const category =
    frame.fields.find((field) => field.name === options.xField) ??
    frame.fields.find((field) => field.type !== FieldType.number) ??
    frame.fields[0];
  const values = series.filter((field) => field !== category);
  const items = values.map((field) => ({
    label: nameOf(frame, frame.fields.indexOf(field), props.frames),
    color: getFieldSeriesColor(field, theme).color,
    yAxis: 1,
  }));
  const drawn = legend.showLegend ? (
    <VizLayout.Legend placement={legend.placement} width={legend.width}>
      <VizLegend items={items} placement={legend.placement} displayMode={legend.displayMode} readonly />
    </VizLayout.Legend>
  ) : null;
  return (
    <VizLayout width={props.width} height={props.height} legend={drawn}>
      {(width, height) => <Plot {...{ frame, category, values, width, height, options }} />}
    </VizLayout>
  );
}

interface PlotProps {
  frame: DataFrame;
  category: Field;
  values: Field[];
  width: number;
  height: number;
  options: any;
}

function Plot({ frame, category, values, width, height, options }: PlotProps) {
  const theme = useTheme2();
  const stacked = options.stacking && options.stacking !== 'none';
  const rows = Array.from({ length: frame.length }, (_, row) => values.map((field) => Number(field.values[row] ?? 0)));
  const most = Math.max(...rows.map((row) => (stacked ? row.reduce((a, b) => a + b, 0) : Math.max(...row))), 0);
  const ticks = niceTicks(most, Math.max(Math.floor(height / 50), 2));
  const top = ticks[ticks.length - 1];
  const shown = (value: number) => formattedValueToString(values[0].display!(value));
  const left = Math.max(...ticks.map((tick) => measureText(shown(tick), FONT).width)) + 12;
  const plotWidth = width - left - 8;
  const plotHeight = height - 28;
  const slot = plotWidth / Math.max(rows.length, 1);
  const bar = slot * (options.barWidth ?? 0.97) * (options.groupWidth ?? 0.7);
  const labels = rows.map((_, row) => formattedValueToString(category.display!(category.values[row])));
  const widest = Math.max(...labels.map((text) => measureText(text, FONT).width)) + 12;
  const every = Math.max(Math.ceil(widest / slot), 1);
  const y = (value: number) => 18 + (plotHeight - 18) * (1 - value / (top || 1));
  const texts = rows.flatMap((row) => row.map((value) => measureText(shown(value), FONT).width));
  const valuesFit = options.showValue !== 'never' && !stacked && Math.max(...texts) < bar / values.length;
  return (
    <svg width={width} height={height} fontSize={FONT} fill={theme.colors.text.primary}>
      {ticks.map((tick) => (
        <g key={tick}>
          <line x1={left} x2={width - 8} y1={y(tick)} y2={y(tick)} stroke="rgba(240, 250, 255, 0.09)" />
          <text x={left - 8} y={y(tick)} textAnchor="end" dominantBaseline="central">
            {shown(tick)}
          </text>
        </g>
      ))}
      {rows.map((row, index) => {
        let below = 0;
        return (
          <g key={index}>
            {row.map((value, at) => {
              const wide = stacked ? bar : bar / row.length;
              const x = left + slot * index + (slot - bar) / 2 + (stacked ? 0 : at * wide);
              const base = stacked ? below : 0;
              below += value;
              const color = getFieldSeriesColor(values[at], theme).color;
              const opacity = (values[at].config.custom?.fillOpacity ?? 80) / 100;
              return (
                <rect key={at} x={x} y={y(base + value)} width={Math.max(wide, 1)} height={Math.max(y(base) - y(base + value), 0)} fill={color} fillOpacity={opacity} stroke={color} />
              );
            })}
            {valuesFit &&
              row.map((value, at) => (
                <text
                  key={`of-${at}`}
                  x={left + slot * index + (slot - bar) / 2 + (at + 0.5) * (bar / row.length)}
                  y={y(value) - 9}
                  textAnchor="middle"
                  dominantBaseline="central"
                >
                  {shown(value)}
                </text>
              ))}
            {index % every === 0 && (
              <text x={left + slot * (index + 0.5)} y={height - 10} textAnchor="middle">
                {labels[index]}
              </text>
            )}
          </g>
        );
      })}
    </svg>
  );
}

function niceTicks(most: number, count: number): number[] {
  const rough = (most || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  return Array.from({ length: Math.ceil((most || 1) / step) + 1 }, (_, index) => index * step);
}
