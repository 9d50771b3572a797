// @grafana/ui has no gauge (its application draws it): an arc in the same colours and proportions.
import { type FieldDisplay, formattedValueToString } from '@grafana/data';
import { calculateFontSize, measureText, useTheme2 } from '@grafana/ui';
import { arc } from './arcs';

interface Props {
  value: FieldDisplay;
  title?: string;
  width: number;
  height: number;
  options: any;
}

const START = -0.7 * Math.PI;
const END = 0.7 * Math.PI;

export function Gauge({ value, title, width, height, options }: Props) {
  const theme = useTheme2();
  const { display, field } = value;
  const min = field.min ?? 0;
  const max = field.max ?? 100;
  const titleHeight = title ? 22 : 0;
  const outer = Math.min(width / 2, (height - titleHeight) / 1.65) - 6;
  const ring = Math.max(outer * 0.18, 6);
  const rim = options.showThresholdMarkers === false ? 0 : Math.max(outer * 0.05, 3);
  const share = display.numeric === undefined || Number.isNaN(display.numeric) ? 0 : (display.numeric - min) / (max - min);
  const angle = (part: number) => START + (END - START) * Math.min(Math.max(part, 0), 1);
  const steps = field.thresholds?.steps ?? [];
  const ofScale = (step: number) => (field.thresholds?.mode === 'percentage' ? step / 100 : (step - min) / (max - min));
  const text = formattedValueToString(display);
  const inner = outer - rim - 2 - ring;
  const size = calculateFontSize(text, inner * 1.7, inner, 1, 60);
  return (
    <svg width={width} height={height}>
      <g transform={`translate(${width / 2}, ${outer + 6})`}>
        <path d={arc(inner, inner + ring, START, END)} fill={theme.colors.background.secondary} />
        <path d={arc(inner, inner + ring, START, angle(share))} fill={display.color} />
        {rim > 0 &&
          steps.map((step: any, index: number) => (
            <path
              key={index}
              d={arc(outer - rim, outer, angle(ofScale(step.value)), index + 1 < steps.length ? angle(ofScale(steps[index + 1].value)) : END)}
              fill={theme.visualization.getColorByName(step.color)}
            />
          ))}
        <text textAnchor="middle" dominantBaseline="central" fontSize={size} fontWeight={500} fill={display.color}>
          {text}
        </text>
      </g>
      {title && (
        <text x={width / 2} y={height - 8} textAnchor="middle" fontSize={13} fill={theme.colors.text.primary}>
          {fitted(title, width)}
        </text>
      )}
    </svg>
  );
}

function fitted(title: string, width: number): string {
  let shown = title;
  while (shown.length > 4 && measureText(shown, 13).width > width - 8) {
    shown = `${shown.slice(0, -4)}...`;
  }
  return shown;
}
