// Bundles the page, opens it in headless Chromium and writes a picture of each dashboard.
// Usage, by __main__.py: node draw.mjs SHEETS.json FOLDER CHROMIUM
import { build } from 'esbuild';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import UPNG from 'upng-js';

const HERE = path.dirname(fileURLToPath(import.meta.url));
const WIDTH = 1600;
const ORIGIN = 'http://preview.invalid';
const FLAGS = [
  '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
  '--disable-sync', '--hide-scrollbars', '--force-color-profile=srgb',
];
const TYPES = { '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml', '.woff2': 'font/woff2', '.html': 'text/html' };

/** Said by Grafana's libraries whatever the page does, and of no consequence to a picture. */
const IGNORED = [/i18n was initialized/, /Failed to load resource/];

const resolve = createRequire(import.meta.url).resolve;
const UI = path.dirname(resolve('@grafana/ui/package.json'));
const INTER = path.dirname(resolve('inter-ui/package.json'));

async function bundle(folder) {
  await build({
    entryPoints: [path.join(HERE, 'src/page.tsx')],
    outdir: folder,
    bundle: true,
    format: 'iife',
    jsx: 'automatic',
    minify: true,
    logLevel: 'error',
    define: { 'process.env.NODE_ENV': '"production"', 'process.env': '{}', global: 'window' },
    loader: { '.svg': 'dataurl', '.woff': 'empty', '.woff2': 'empty', '.ttf': 'empty', '.png': 'dataurl' },
  });
}

/** Where a path of the page comes from: the bundle, Grafana's icons, the Inter typeface. Nothing goes out. */
function fileOf(url, folder) {
  const name = new URL(url).pathname;
  if (name.startsWith('/public/build/img/icons/')) {
    return path.join(UI, 'dist/public/img/icons', name.slice('/public/build/img/icons/'.length));
  }
  if (name.startsWith('/public/fonts/inter/')) {
    return path.join(INTER, 'web', path.basename(name));
  }
  return path.join(folder, path.basename(name));
}

const PAGE = `<!doctype html><html class="theme-dark"><head><base href="/"><link rel="stylesheet" href="/page.css"></head>
<body style="margin:0"><div id="root"></div><script src="/page.js"></script></body></html>`;

/** The same picture in 256 colours: a third of the bytes, and no difference to be seen. */
function small(png) {
  const image = UPNG.decode(png);
  return Buffer.from(UPNG.encode(UPNG.toRGBA8(image).slice(0, 1), image.width, image.height, 256));
}

async function picture(context, sheet, folder, target) {
  const page = await context.newPage();
  const problems = [];
  page.on('pageerror', (error) => problems.push(`${error.message}\n${error.stack}`));
  page.on('console', (message) => {
    const text = message.text();
    if (['error', 'warning'].includes(message.type()) && !IGNORED.some((one) => one.test(text))) {
      problems.push(text);
    }
  });
  await page.route('**/*', async (route) => {
    const url = route.request().url();
    if (url === `${ORIGIN}/`) {
      return route.fulfill({ contentType: 'text/html', body: PAGE });
    }
    const file = fileOf(url, folder);
    if (!url.startsWith(ORIGIN) || !existsSync(file)) {
      return route.fulfill({ status: 404, body: '' });
    }
    return route.fulfill({ contentType: TYPES[path.extname(file)], body: await readFile(file) });
  });
  await page.clock.setFixedTime(sheet.to);
  await page.goto(`${ORIGIN}/`);
  await page.evaluate(([one, width]) => window.drawSheet(one, width), [sheet, WIDTH]);
  await page.waitForSelector('section');
  await page.waitForLoadState('networkidle');
  await page.evaluate(() => document.fonts.ready);
  await page.waitForTimeout(1500);
  const root = page.locator('#root > div').last();
  const { height } = await root.boundingBox();
  await page.setViewportSize({ width: WIDTH, height: Math.ceil(height) });
  await page.waitForTimeout(500);
  const png = small(await root.screenshot({ animations: 'disabled' }));
  await writeFile(target, png);
  await page.close();
  console.log(`${path.relative(process.cwd(), target)}  ${WIDTH} x ${Math.ceil(height)}, ${Math.round(png.length / 1024)} KiB`);
  problems.forEach((text) => console.log(`  ${text}`));
}

async function main([input, output, executablePath]) {
  const sheets = JSON.parse(await readFile(input, 'utf8'));
  const folder = await mkdtemp(path.join(tmpdir(), 'preview-'));
  await mkdir(output, { recursive: true });
  await bundle(folder);
  const context = await chromium.launchPersistentContext(path.join(folder, 'profile'), {
    executablePath,
    headless: true,
    chromiumSandbox: false,
    args: FLAGS,
    viewport: { width: WIDTH, height: 1000 },
    timezoneId: 'UTC',
    locale: 'en-GB',
  });
  try {
    for (const sheet of sheets) {
      await picture(context, sheet, folder, path.join(output, `${sheet.dashboard.uid}.png`));
    }
  } finally {
    await context.close();
    await rm(folder, { recursive: true, force: true });
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`preview: ${error.message}`);
  process.exitCode = 1;
});
