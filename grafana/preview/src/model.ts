// What frames.py writes and the page draws.
import type { DataFrameJSON, FieldConfigSource, DataTransformerConfig } from '@grafana/data';

export interface GridPos {
  x: number;
  y: number;
  w: number;
  h: number;
}

export interface Panel {
  id: number;
  type: string;
  title?: string;
  description?: string;
  transparent?: boolean;
  collapsed?: boolean;
  gridPos: GridPos;
  fieldConfig?: FieldConfigSource;
  transformations?: DataTransformerConfig[];
  options?: any;
  panels?: Panel[];
}

export interface Variable {
  name: string;
  label?: string;
  type: string;
  hide?: number;
}

export interface DashboardLink {
  title: string;
  type: string;
  icon?: string;
  asDropdown?: boolean;
}

export interface Dashboard {
  uid: string;
  title: string;
  timezone?: string;
  refresh?: string;
  time: { from: string; to: string };
  panels: Panel[];
  templating?: { list: Variable[] };
  links?: DashboardLink[];
}

export interface VariableValue {
  text: string;
  value: string | string[];
}

/** One dashboard with everything its picture needs; times in ms since 1970. */
export interface Sheet {
  dashboard: Dashboard;
  from: number;
  to: number;
  variables: Record<string, VariableValue>;
  frames: Record<string, DataFrameJSON[]>;
}
