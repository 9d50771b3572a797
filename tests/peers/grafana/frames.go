package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"reflect"
	"regexp"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"
	"github.com/grafana/grafana-plugin-sdk-go/data/sqlutil"
	"github.com/grafana/sqlds/v5"
	"github.com/shopspring/decimal"
)

// driver is what Grafana's SQL datasources are made of, for this server.
type driver struct{ to server }

func (d driver) Connect(context.Context, backend.DataSourceInstanceSettings, json.RawMessage) (*sql.DB, error) {
	return open(d.to), nil
}

func (d driver) Settings(context.Context, backend.DataSourceInstanceSettings) sqlds.DriverSettings {
	return sqlds.DriverSettings{
		Timeout:  60 * time.Second,
		FillMode: &data.FillMissing{Mode: data.FillModeNull},
	}
}

// Macros has none: statements come expanded.
func (d driver) Macros() sqlds.Macros { return sqlds.Macros{} }

// Converters names what the SDK does not know by itself.
func (d driver) Converters() []sqlutil.Converter {
	return []sqlutil.Converter{
		converter(`^Decimal`, data.FieldTypeFloat64, reflect.PointerTo(reflect.TypeFor[decimal.Decimal]()),
			func(in any) (any, error) { return in.(*decimal.Decimal).InexactFloat64(), nil }),
		plain[string](`^(LowCardinality\()?String\)?$`, data.FieldTypeString),
		plain[*string](`^(LowCardinality\()?Nullable\(String`, data.FieldTypeNullableString),
		plain[time.Time](`^Date`, data.FieldTypeTime),
		plain[*time.Time](`^Nullable\(Date`, data.FieldTypeNullableTime),
		plain[bool](`^Bool$`, data.FieldTypeBool),
		plain[float64](`^Float64$`, data.FieldTypeFloat64),
		plain[*float64](`^Nullable\(Float64\)`, data.FieldTypeNullableFloat64),
		plain[int64](`^Int64$`, data.FieldTypeInt64),
		plain[*int64](`^Nullable\(Int64\)`, data.FieldTypeNullableInt64),
		plain[int32](`^Int32$`, data.FieldTypeInt32),
		plain[uint64](`^UInt64$`, data.FieldTypeUint64),
		plain[*uint64](`^Nullable\(UInt64\)`, data.FieldTypeNullableUint64),
		plain[uint32](`^UInt32$`, data.FieldTypeUint32),
		plain[uint16](`^UInt16$`, data.FieldTypeUint16),
		plain[uint8](`^UInt8$`, data.FieldTypeUint8),
		converter(`^(Array|Map|Tuple)\(`, data.FieldTypeNullableJSON, reflect.TypeFor[any](), asJSON),
	}
}

func plain[T any](types string, field data.FieldType) sqlutil.Converter {
	return converter(types, field, reflect.PointerTo(reflect.TypeFor[T]()),
		func(in any) (any, error) { return *in.(*T), nil })
}

func converter(
	types string, field data.FieldType, scan reflect.Type, convert func(any) (any, error),
) sqlutil.Converter {
	return sqlutil.Converter{
		Name:           types,
		InputScanType:  scan,
		InputTypeName:  types,
		InputTypeRegex: regexp.MustCompile(types),
		FrameConverter: sqlutil.FrameConverter{FieldType: field, ConverterFunc: convert},
	}
}

func asJSON(in any) (any, error) {
	text, err := json.Marshal(in)
	raw := json.RawMessage(text)
	return &raw, err
}

// query is a target of a panel, with its macros and variables expanded.
type query struct {
	RefID  string `json:"refId"`
	RawSQL string `json:"rawSql"`
	Format int    `json:"format"`
	FromMs int64  `json:"fromMs"`
	ToMs   int64  `json:"toMs"`
}

type response struct {
	Error  string            `json:"error"`
	Frames []json.RawMessage `json:"frames"`
}

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

// panels runs queries as Grafana's server does.
func panels(to server, queries []query) (health, map[string]response, error) {
	ctx := context.Background()
	settings := backend.DataSourceInstanceSettings{UID: "metering-clickhouse", Name: "Metering"}
	datasource := sqlds.NewDatasource(driver{to})
	if _, err := datasource.NewDatasource(ctx, settings); err != nil {
		return health{}, nil, err
	}
	defer datasource.Dispose()
	plugin := backend.PluginContext{DataSourceInstanceSettings: &settings}
	checked, err := datasource.CheckHealth(ctx, &backend.CheckHealthRequest{PluginContext: plugin})
	if err != nil {
		return health{}, nil, err
	}
	asked := make([]backend.DataQuery, 0, len(queries))
	for _, one := range queries {
		text, err := json.Marshal(map[string]any{"rawSql": one.RawSQL, "format": one.Format, "refId": one.RefID})
		if err != nil {
			return health{}, nil, err
		}
		asked = append(asked, backend.DataQuery{
			RefID:     one.RefID,
			JSON:      text,
			Interval:  time.Minute,
			TimeRange: backend.TimeRange{From: time.UnixMilli(one.FromMs), To: time.UnixMilli(one.ToMs)},
		})
	}
	answers, err := datasource.QueryData(ctx, &backend.QueryDataRequest{PluginContext: plugin, Queries: asked})
	if err != nil {
		return health{}, nil, err
	}
	found := make(map[string]response, len(queries))
	for name, one := range answers.Responses {
		shown := response{Frames: []json.RawMessage{}}
		if one.Error != nil {
			shown.Error = one.Error.Error()
		}
		for _, frame := range one.Frames {
			text, err := data.FrameToJSON(frame, data.IncludeAll)
			if err != nil {
				return health{}, nil, err
			}
			shown.Frames = append(shown.Frames, text)
		}
		found[name] = shown
	}
	return health{checked.Status.String(), checked.Message}, found, nil
}
