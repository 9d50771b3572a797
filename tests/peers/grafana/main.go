// Asks a server as Grafana does: by clickhouse-go over HTTP, and by the libraries that its SQL datasources are
// made of (sqlds, the plugin SDK). Reads what to ask from standard input, writes the answers to standard output.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

type task struct {
	Server    server     `json:"server"`
	Questions []question `json:"questions"`
	Queries   []query    `json:"queries"`
}

type done struct {
	Ping      string              `json:"ping"`
	Answers   []answer            `json:"answers"`
	Health    health              `json:"health"`
	Responses map[string]response `json:"responses"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var asked task
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return err
	}
	found := done{Answers: []answer{}, Responses: map[string]response{}}
	db := open(asked.Server)
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := db.PingContext(ctx); err != nil {
		found.Ping = err.Error()
	}
	for _, one := range asked.Questions {
		found.Answers = append(found.Answers, ask(db, one))
	}
	if len(asked.Queries) > 0 {
		var err error
		if found.Health, found.Responses, err = panels(asked.Server, asked.Queries); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}
