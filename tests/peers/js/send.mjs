// Sends a plan of usage with the OpenTelemetry JavaScript SDK, and prints what its exporters were told.
//
// Standard input: {protocol, endpoint, key, rounds: [[{kind, name, value, integer, attributes}]]}. After each
// round everything is exported. Standard output: {exports, failures: [message]}.
import { readFileSync } from 'node:fs';
import { Metadata, credentials } from '@grpc/grpc-js';
import { SpanKind, ValueType } from '@opentelemetry/api';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BatchLogRecordProcessor, LoggerProvider } from '@opentelemetry/sdk-logs';
import {
  AggregationTemporality,
  MeterProvider,
  PeriodicExportingMetricReader,
} from '@opentelemetry/sdk-metrics';
import { BasicTracerProvider, BatchSpanProcessor } from '@opentelemetry/sdk-trace-base';

const plan = JSON.parse(readFileSync(0, 'utf8'));
const suffix = { 'http/json': 'http', 'http/protobuf': 'proto', grpc: 'grpc' }[plan.protocol];
const told = { exports: 0, failures: [] };
const resource = resourceFromAttributes({
  'service.name': 'shop-js',
  'service.instance.id': `js-${suffix}`,
});

function options(path) {
  if (plan.protocol !== 'grpc') {
    return { url: plan.endpoint + path, headers: { authorization: `Bearer ${plan.key}` } };
  }
  const metadata = new Metadata();
  metadata.set('authorization', `Bearer ${plan.key}`);
  return { url: plan.endpoint, credentials: credentials.createInsecure(), metadata };
}

// The SDK only logs the failure of an export; here it is counted.
function watched(exporter) {
  const send = exporter.export.bind(exporter);
  exporter.export = (items, done) =>
    send(items, (result) => {
      told.exports += 1;
      if (result.code !== 0) told.failures.push(String(result.error?.message ?? result.error));
      done(result);
    });
  return exporter;
}

const { OTLPMetricExporter } = await import(`@opentelemetry/exporter-metrics-otlp-${suffix}`);
const { OTLPTraceExporter } = await import(`@opentelemetry/exporter-trace-otlp-${suffix}`);
const { OTLPLogExporter } = await import(`@opentelemetry/exporter-logs-otlp-${suffix}`);

function meterProvider(temporalityPreference) {
  const exporter = watched(new OTLPMetricExporter({ ...options('/v1/metrics'), temporalityPreference }));
  const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 3_600_000 });
  return new MeterProvider({ resource, readers: [reader] });
}

const providers = {
  delta: meterProvider(AggregationTemporality.DELTA),
  cumulative: meterProvider(AggregationTemporality.CUMULATIVE),
  spans: new BasicTracerProvider({
    resource,
    spanProcessors: [new BatchSpanProcessor(watched(new OTLPTraceExporter(options('/v1/traces'))))],
  }),
  logs: new LoggerProvider({
    resource,
    processors: [new BatchLogRecordProcessor({ exporter: watched(new OTLPLogExporter(options('/v1/logs'))) })],
  }),
};

const instruments = new Map();
function instrument(temporality, create, { name, integer }) {
  const key = `${temporality} ${name}`;
  if (!instruments.has(key)) {
    const meter = providers[temporality].getMeter('otel_metering');
    instruments.set(key, meter[create](name, { valueType: integer ? ValueType.INT : ValueType.DOUBLE }));
  }
  return instruments.get(key);
}

const tracer = providers.spans.getTracer('shop');
const logger = providers.logs.getLogger('shop');
const use = {
  'delta counter': (one) => instrument('delta', 'createCounter', one).add(one.value, one.attributes),
  'cumulative counter': (one) => instrument('cumulative', 'createCounter', one).add(one.value, one.attributes),
  'delta histogram': (one) => instrument('delta', 'createHistogram', one).record(one.value, one.attributes),
  'cumulative histogram': (one) => instrument('cumulative', 'createHistogram', one).record(one.value, one.attributes),
  gauge: (one) => instrument('cumulative', 'createGauge', one).record(one.value, one.attributes),
  'up-down counter': (one) => instrument('cumulative', 'createUpDownCounter', one).add(one.value, one.attributes),
  span: (one) => tracer.startSpan(one.name, { kind: SpanKind.SERVER, attributes: one.attributes }).end(),
  log: (one) => logger.emit({ eventName: one.name, attributes: one.attributes, timestamp: Date.now() }),
};

for (const round of plan.rounds) {
  for (const one of round) use[one.kind](one);
  await Promise.allSettled(Object.values(providers).map((provider) => provider.forceFlush()));
}
await Promise.allSettled(Object.values(providers).map((provider) => provider.shutdown()));
process.stdout.write(JSON.stringify(told));
