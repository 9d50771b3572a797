package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// server says where to connect, as the settings of the datasource say it.
type server struct {
	Host     string `json:"host"`
	Port     int    `json:"port"`
	Database string `json:"database"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// open connects as Grafana's datasource does that is set to HTTP: Basic authentication, answers in gzip.
func open(to server) *sql.DB {
	db := clickhouse.OpenDB(&clickhouse.Options{
		Addr:        []string{fmt.Sprintf("%s:%d", to.Host, to.Port)},
		Auth:        clickhouse.Auth{Database: to.Database, Username: to.Username, Password: to.Password},
		ClientInfo:  clickhouse.ClientInfo{Products: []struct{ Name, Version string }{{"grafana", "12.0.0"}}},
		Compression: &clickhouse.Compression{Method: clickhouse.CompressionGZIP},
		DialTimeout: 10 * time.Second,
		ReadTimeout: 60 * time.Second,
		Protocol:    clickhouse.HTTP,
		Settings:    clickhouse.Settings{},
	})
	db.SetConnMaxLifetime(5 * time.Minute)
	db.SetMaxIdleConns(25)
	db.SetMaxOpenConns(50)
	return db
}

// question is one statement for the driver alone.
type question struct {
	SQL       string `json:"sql"`
	TimeoutMs int    `json:"timeoutMs"`
}

type column struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

type answer struct {
	Columns []column `json:"columns"`
	Rows    [][]any  `json:"rows"`
	Error   string   `json:"error"`
	Code    int32    `json:"code"`
	IsLate  bool     `json:"isLate"`
}

// ask runs one statement as database/sql does.
func ask(db *sql.DB, one question) answer {
	ctx := context.Background()
	if one.TimeoutMs > 0 {
		limited, cancel := context.WithTimeout(ctx, time.Duration(one.TimeoutMs)*time.Millisecond)
		defer cancel()
		ctx = limited
	}
	found, err := read(ctx, db, one.SQL)
	if err != nil {
		found.Error = err.Error()
		found.IsLate = errors.Is(err, context.DeadlineExceeded)
		var exception *clickhouse.Exception
		if errors.As(err, &exception) {
			found.Code = exception.Code
		}
	}
	return found
}

func read(ctx context.Context, db *sql.DB, statement string) (answer, error) {
	found := answer{Columns: []column{}, Rows: [][]any{}}
	rows, err := db.QueryContext(ctx, statement)
	if err != nil {
		return found, err
	}
	defer rows.Close()
	types, err := rows.ColumnTypes()
	if err != nil {
		return found, err
	}
	for _, one := range types {
		found.Columns = append(found.Columns, column{one.Name(), one.DatabaseTypeName()})
	}
	for rows.Next() {
		values, places := make([]any, len(types)), make([]any, len(types))
		for i := range values {
			places[i] = &values[i]
		}
		if err := rows.Scan(places...); err != nil {
			return found, err
		}
		for i, value := range values {
			values[i] = shown(value)
		}
		found.Rows = append(found.Rows, values)
	}
	return found, rows.Err()
}

// shown is a value as JSON can hold it: numbers as their text, moments in UTC.
func shown(value any) any {
	switch one := value.(type) {
	case time.Time:
		return one.UTC().Format(time.RFC3339Nano)
	case nil, string, bool:
		return one
	case int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64, fmt.Stringer:
		return fmt.Sprint(one)
	default:
		text, err := json.Marshal(one)
		if err != nil {
			return fmt.Sprint(one)
		}
		return string(text)
	}
}
