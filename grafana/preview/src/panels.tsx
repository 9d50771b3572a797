// One component for each type of panel: what Grafana's panel plugins do around the components of @grafana/ui.
import {
  type DataFrame,
  dateTime,
  type DisplayValue,
  type FieldDisplay,
  FieldType,
  getDisplayValueAlignmentFactors,
  getFieldDisplayName,
  getFieldDisplayValues,
  type InterpolateFunction,
  renderMarkdown,
  type TimeRange,
  VizOrientation,
} from '@grafana/data';
import {
  BarGauge,
  BigValue,
  BigValueTextMode,
  TimeSeries,
  useTheme2,
  VizRepeater,
} from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { Bars } from './bars';
import { Gauge } from './gauge';
import type { Panel, Sheet } from './model';
import { Pie } from './pie';

export interface VizProps {
  panel: Panel;
  frames: DataFrame[];
  width: number;
  height: number;
  sheet: Sheet;
  replace: InterpolateFunction;
}

export function timeRangeOf(sheet: Sheet): TimeRange {
  return { from: dateTime(sheet.from), to: dateTime(sheet.to), raw: sheet.dashboard.time };
}

/** The values a stat, gauge or pie shows, reduced as the panel's options say. */
export function useDisplays({ panel, frames, sheet, replace }: VizProps, sparkline = false): FieldDisplay[] {
  const theme = useTheme2();
  const options = panel.options ?? {};
  return getFieldDisplayValues({
    fieldConfig: { defaults: panel.fieldConfig?.defaults ?? {}, overrides: panel.fieldConfig?.overrides ?? [] },
    reduceOptions: { calcs: ['lastNotNull'], values: false, ...options.reduceOptions },
    replaceVariables: replace,
    theme,
    data: frames,
    sparkline,
    percentChange: options.showPercentChange,
    timeZone: sheet.dashboard.timezone ?? 'utc',
  });
}

export function NoData({ panel, width, height }: VizProps) {
  const theme = useTheme2();
  const text = panel.fieldConfig?.defaults?.noValue ?? 'No data';
  const style: React.CSSProperties = {
    width,
    height,
    display: 'flex',
    alignItems: 'center',
    justifyContent: 'center',
    textAlign: 'center',
    color: theme.colors.text.secondary,
  };
  return <div style={style}>{text}</div>;
}

const hasRows = (frames: DataFrame[]) => frames.some((frame) => frame.length > 0);

function Stat(props: VizProps) {
  const theme = useTheme2();
  const { panel, width, height, sheet } = props;
  const options = panel.options ?? {};
  const displays = useDisplays(props, options.graphMode !== 'none');
  const named = panel.fieldConfig?.defaults?.displayName || !panel.title;
  const asked = options.textMode ?? BigValueTextMode.Auto;
  const textMode = asked === BigValueTextMode.Auto && named ? BigValueTextMode.ValueAndName : asked;
  return (
    <VizRepeater
      getValues={() => displays}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      width={width}
      height={height}
      source={props.frames}
      itemSpacing={3}
      renderCounter={0}
      autoGrid
      orientation={options.orientation ?? VizOrientation.Auto}
      renderValue={({ value, width, height, count, alignmentFactors }: any) => {
        if (value.sparkline) {
          value.sparkline.timeRange = timeRangeOf(sheet);
        }
        return (
          <BigValue
            value={value.display}
            count={count}
            sparkline={value.sparkline}
            colorMode={options.colorMode ?? 'value'}
            graphMode={options.graphMode ?? 'area'}
            justifyMode={options.justifyMode ?? 'auto'}
            textMode={textMode}
            alignmentFactors={alignmentFactors}
            percentChangeColorMode={options.percentChangeColorMode ?? 'standard'}
            disableWideLayout={options.wideLayout === false}
            text={options.text}
            width={width}
            height={height}
            theme={theme}
          />
        );
      }}
    />
  );
}

function Bargauge(props: VizProps) {
  const theme = useTheme2();
  const options = props.panel.options ?? {};
  const displays = useDisplays(props);
  const lcd = (options.displayMode ?? 'gradient') === 'lcd';
  return (
    <VizRepeater
      getValues={() => displays}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      width={props.width}
      height={props.height}
      source={props.frames}
      itemSpacing={lcd ? 2 : 10}
      renderCounter={0}
      orientation={options.orientation ?? VizOrientation.Auto}
      minVizWidth={options.minVizWidth ?? 8}
      minVizHeight={options.minVizHeight ?? 16}
      maxVizHeight={options.maxVizHeight ?? 300}
      renderValue={({ value, width, height, count, orientation, alignmentFactors }: any) => (
        <BarGauge
          value={nameForMany(count, value)}
          width={width}
          height={height}
          orientation={orientation}
          field={value.field}
          text={options.text}
          display={value.view?.getFieldDisplayProcessor(value.colIndex)}
          theme={theme}
          itemSpacing={lcd ? 2 : 10}
          displayMode={options.displayMode ?? 'gradient'}
          alignmentFactors={alignmentFactors}
          showUnfilled={options.showUnfilled ?? true}
          valueDisplayMode={options.valueMode ?? 'color'}
          namePlacement={options.namePlacement ?? 'auto'}
        />
      )}
    />
  );
}

function nameForMany(count: number, value: FieldDisplay): DisplayValue {
  return count === 1 && !value.field.displayName ? { ...value.display, title: undefined } : value.display;
}

function Gauges(props: VizProps) {
  const options = props.panel.options ?? {};
  const displays = useDisplays(props);
  return (
    <VizRepeater
      getValues={() => displays}
      width={props.width}
      height={props.height}
      source={props.frames}
      itemSpacing={3}
      renderCounter={0}
      autoGrid
      orientation={options.orientation ?? VizOrientation.Auto}
      renderValue={({ value, width, height, count }: any) => (
        <Gauge value={value} title={nameForMany(count, value).title} width={width} height={height} options={options} />
      )}
    />
  );
}

function Series(props: VizProps) {
  const { panel, frames, sheet, width, height } = props;
  const legend = { showLegend: true, displayMode: 'list', placement: 'bottom', calcs: [], ...panel.options?.legend };
  const shown = frames.filter((frame) => frame.fields.some((field) => field.type === FieldType.time));
  if (!hasRows(shown)) {
    return <NoData {...props} />;
  }
  return (
    <TimeSeries
      frames={shown}
      structureRev={1}
      timeRange={timeRangeOf(sheet)}
      timeZone={sheet.dashboard.timezone ?? 'utc'}
      width={width}
      height={height}
      legend={legend}
    />
  );
}

function Table(props: VizProps) {
  const { panel, frames, sheet, width, height } = props;
  const options = panel.options ?? {};
  if (!hasRows(frames)) {
    return <NoData {...props} />;
  }
  return (
    <TableNG
      data={frames[options.frameIndex ?? 0]}
      width={width}
      height={height}
      noHeader={options.showHeader === false}
      showTypeIcons={options.showTypeIcons}
      cellHeight={options.cellHeight ?? 'sm'}
      sortBy={options.sortBy}
      enablePagination={options.enablePagination}
      frozenColumns={options.frozenColumns?.left ?? 0}
      timeRange={timeRangeOf(sheet)}
      fieldConfig={panel.fieldConfig}
      noValue={panel.fieldConfig?.defaults?.noValue}
      enableVirtualization={false}
      structureRev={1}
    />
  );
}

function Text({ panel, replace }: VizProps) {
  const content = replace(panel.options?.content ?? '');
  const html = panel.options?.mode === 'html' ? content : renderMarkdown(content);
  return <div className="markdown-html" dangerouslySetInnerHTML={{ __html: html }} />;
}

function Unknown({ panel }: VizProps) {
  return <div>No drawing for panels of type {panel.type}</div>;
}

/** Panels that fill their frame to its edges. */
export const EDGE_TO_EDGE = new Set(['stat', 'table']);
const EMPTY_AS_VALUE = new Set(['stat', 'text', 'timeseries', 'table']);
const COMPONENTS: Record<string, React.FC<VizProps>> = {
  stat: Stat,
  bargauge: Bargauge,
  gauge: Gauges,
  timeseries: Series,
  table: Table,
  text: Text,
  piechart: Pie,
  barchart: Bars,
  histogram: Bars,
};

export function Viz(props: VizProps) {
  const Component = COMPONENTS[props.panel.type] ?? Unknown;
  if (!COMPONENTS[props.panel.type]) {
    console.warn(`panel "${props.panel.title}": no drawing for panels of type ${props.panel.type}`);
  }
  if (!EMPTY_AS_VALUE.has(props.panel.type) && !hasRows(props.frames)) {
    return <NoData {...props} />;
  }
  return <Component {...props} />;
}

export const nameOf = (frame: DataFrame, index: number, frames: DataFrame[]) =>
  getFieldDisplayName(frame.fields[index], frame, frames);
