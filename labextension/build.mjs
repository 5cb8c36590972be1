// Builds ../depin_nb/labextension: the extension as a prebuilt one, in a hand-written module federation container.
// JupyterLab loads static/remoteEntry.*.js, calls init(its share scope), then get('./extension').
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const here = dirname(fileURLToPath(import.meta.url));
const source = JSON.parse(readFileSync(join(here, 'package.json'), 'utf8'));
const out = join(here, source.jupyterlab.outputDir);

const result = await build({
  absWorkingDir: here,
  entryPoints: ['src/index.ts'],
  bundle: true,
  write: false,
  metafile: true,
  minify: true,
  format: 'cjs',
  target: 'es2021',
  charset: 'utf8',
  legalComments: 'none',
  loader: { '.css': 'text', '.svg': 'text' },
  external: ['@jupyterlab/*', '@lumino/*']
});

const imports = Object.values(result.metafile.outputs).flatMap(output => output.imports);
const shared = [...new Set(imports.filter(entry => entry.external).map(entry => entry.path))].sort();

// What JupyterLab shares is asked for by name; a version that is already loaded comes first, else the newest.
const container = `(() => {
const shared = ${JSON.stringify(shared)};
let scope = {};
const newest = (a, b) => b.localeCompare(a, undefined, { numeric: true });
async function load(name) {
  const versions = Object.entries(scope[name] || {}).sort(([a], [b]) => newest(a, b));
  const found = versions.find(([, entry]) => entry.loaded) || versions[0];
  if (!found) throw new Error('depin-nb: ' + name + ' is not shared by this application');
  return (await found[1].get())();
}
let ready;
async function open() {
  const loaded = Object.fromEntries(await Promise.all(shared.map(async name => [name, await load(name)])));
  const module = { exports: {} };
  ((module, exports, require) => {
${result.outputFiles[0].text}
  })(module, module.exports, name => loaded[name]);
  return () => module.exports;
}
(window._JUPYTERLAB = window._JUPYTERLAB || {})[${JSON.stringify(source.name)}] = {
  init: shareScope => { scope = shareScope; },
  get: () => (ready = ready || open())
};
})();
`;

const entry = `remoteEntry.${createHash('sha256').update(container).digest('hex').slice(0, 16)}.js`;
rmSync(out, { recursive: true, force: true });
mkdirSync(join(out, 'static'), { recursive: true });
writeFileSync(join(out, 'static', entry), container);
const built = {
  name: source.name,
  version: source.version,
  description: source.description,
  license: source.license,
  dependencies: { '@jupyterlab/application': '^4.0.0' },
  jupyterlab: { extension: true, _build: { load: `static/${entry}`, extension: './extension' } }
};
writeFileSync(join(out, 'package.json'), JSON.stringify(built, null, 2) + '\n');
console.log(`${entry}: ${(container.length / 1024).toFixed(1)} kB, shares ${shared.join(', ')}`);
