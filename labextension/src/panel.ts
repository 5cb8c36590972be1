// The left sidebar: the hub's runs and devices, or what to do when there is no hub.

import type { Message } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';
import type { Connection } from './connection';
import { DeviceView } from './device';
import { h, Keyed, set, text } from './dom';
import { depinIcon } from './icon';
import { RunView } from './run';
import { inOrder, rows, type Row, type Run } from './snapshot';

export const PANEL_ID = 'depin-nb-panel';
const MAX_RUNS = 20; // the journal holds the others: %depin runs

function code(line: string): HTMLElement {
  const copied = h('span', { class: 'depin-lab-copied', role: 'status' });
  const button = h('button', { class: 'depin-lab-copy', type: 'button', 'aria-label': `Copy ${line}` }, h('code', {}, line), copied);
  button.addEventListener('click', () => {
    void navigator.clipboard?.writeText(line).then(() => text(copied, 'copied'));
  });
  button.addEventListener('blur', () => text(copied, ''));
  return button;
}

/** The hub's Dask dashboard listens on its machine's loopback: a link to it is of use only where the browser runs on that machine too. */
function nearby(url: unknown): string | undefined {
  const local = ['localhost', '127.0.0.1', '[::1]'].includes(location.hostname);
  return local && typeof url === 'string' && /^https?:\/\//.test(url) ? url : undefined;
}

export class Panel extends Widget {
  private readonly _hub = h('span', { class: 'depin-lab-hub', role: 'status' });
  private readonly _banner = h('p', { class: 'depin-lab-banner', role: 'status' });
  private readonly _empty = h(
    'div',
    { class: 'depin-lab-empty' },
    depinIcon.element({ tag: 'div', width: '44px', height: '44px', className: 'depin-lab-empty-icon' }),
    h('h3', {}, 'No hub is running'),
    h('p', {}, 'Start one from a notebook cell. Four simulated devices join on this machine:'),
    code('%load_ext depin_nb'),
    code('%depin up depin'),
    h('p', {}, 'Then put ', h('code', {}, '%%depin train'), ' on top of a training cell.')
  );
  private readonly _noRuns = h('p', { class: 'depin-lab-hint' }, 'No runs yet. Put ', h('code', {}, '%%depin train'), ' on top of a training cell.');
  private readonly _noDevices = h('p', { class: 'depin-lab-hint' }, 'No devices yet. ', h('code', {}, '%depin scale 2'), ' starts two.');
  private readonly _runList = h('ul', { class: 'depin-lab-list', 'aria-label': 'Runs' });
  private readonly _deviceList = h('ul', { class: 'depin-lab-list depin-lab-devices', 'aria-label': 'Devices' });
  private readonly _deviceCount = h('span', { class: 'depin-lab-count' });
  private readonly _dask = h('a', { class: 'depin-lab-link', target: '_blank', rel: 'noopener', title: 'Dask dashboard', 'aria-label': 'Dask dashboard' }, 'Dask');
  private readonly _content = h(
    'div',
    { class: 'depin-lab-content' },
    h('section', {}, h('h3', {}, 'Runs'), this._runList, this._noRuns),
    h('section', {}, h('div', { class: 'depin-lab-line' }, h('h3', {}, 'Devices', this._deviceCount), this._dask), this._deviceList, this._noDevices)
  );
  private readonly _runs: Keyed<Run>;
  private readonly _devices: Keyed<Row>;
  private _frame = 0;

  constructor(private readonly _connection: Connection) {
    super();
    this.id = PANEL_ID;
    this.addClass('depin-lab-panel');
    this.title.icon = depinIcon;
    this.title.caption = 'depin: runs, devices and money';
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'depin runs and devices');
    this.node.append(h('header', { class: 'depin-lab-header' }, h('h2', {}, 'depin'), this._hub), this._banner, this._empty, this._content);
    this._runs = new Keyed(this._runList, run => run.run_id, () => new RunView((run, action) => _connection.control(run, action)));
    this._devices = new Keyed(this._deviceList, row => row.device.worker_id, () => new DeviceView());
    _connection.changed.connect(this._plan, this);
    this._draw();
  }

  override dispose(): void {
    if (this.isDisposed) return;
    cancelAnimationFrame(this._frame);
    this._connection.changed.disconnect(this._plan, this);
    super.dispose();
  }

  protected override onAfterShow(_: Message): void {
    this._plan();
  }

  protected override onAfterAttach(_: Message): void {
    this._plan();
  }

  /** Draws once in the next frame, and not at all while nobody looks. */
  private _plan(): void {
    if (this._frame || !this.isVisible) return;
    this._frame = requestAnimationFrame(() => {
      this._frame = 0;
      this._draw();
    });
  }

  private _draw(): void {
    const { snapshot, health } = this._connection;
    const up = snapshot.hub !== null;
    this.node.dataset['health'] = health;
    text(this._hub, up ? 'hub running' : 'no hub');
    this._hub.dataset['up'] = String(up);
    this._hub.hidden = health !== 'live';
    text(
      this._banner,
      health === 'missing'
        ? 'This Jupyter server has no depin_nb.server extension. Install depin-nb in its environment and restart it.'
        : health === 'away'
          ? 'Reconnecting to the Jupyter server…'
          : ''
    );
    this._banner.hidden = !this._banner.textContent;
    this._empty.hidden = up || health === 'connecting';
    this._content.hidden = !up;

    const runs = inOrder(snapshot.runs).slice(0, MAX_RUNS);
    this._runs.update(runs);
    this._noRuns.hidden = runs.length > 0;
    const devices = rows(snapshot);
    this._devices.update(devices);
    this._noDevices.hidden = devices.length > 0;
    const dashboard = nearby(snapshot.hub?.['dashboard']);
    set(this._dask, 'href', dashboard);
    this._dask.hidden = dashboard === undefined;
    const working = devices.filter(row => row.device.state === 'working').length;
    text(this._deviceCount, devices.length ? `${devices.length}${working ? ` · ${working} working` : ''}` : '');
  }
}
