// One device: what it is, what it does (a lane of the last minute), what it earned.

import { h, set, svg, text, type View } from './dom';
import { count, money, rate } from './format';
import type { Row, Span } from './snapshot';

const WINDOW_S = 60;
const LANE_W = 240;
const LANE_H = 6;
const LANE_STATES = ['work', 'send', 'wait', 'lost'] as const;

/** For each state, the SVG path of its spans within the last minute; the right edge is now. */
export function lanePaths(lane: Span[], now_s: number): Record<string, string> {
  const end = Math.max(now_s, ...lane.map(([, to]) => to));
  const from = end - WINDOW_S;
  const x = (at: number): number => (Math.max(0, at - from) / WINDOW_S) * LANE_W;
  const paths: Record<string, string> = {};
  for (const [a, b, state] of lane) {
    if (b <= from || b <= a) continue;
    const width = Math.max(0.6, x(b) - x(a));
    paths[state] = `${paths[state] ?? ''}M${x(a).toFixed(1)} 0h${width.toFixed(1)}v${LANE_H}h-${width.toFixed(1)}z`;
  }
  return paths;
}

export class DeviceView implements View<Row> {
  private readonly _dot = h('span', { class: 'depin-lab-dot', 'aria-hidden': 'true' });
  private readonly _name = h('span', { class: 'depin-lab-device-name' });
  private readonly _simulated = h('span', { class: 'depin-lab-badge', title: 'A simulated device: a process on this machine that behaves like one' }, 'simulated');
  private readonly _kind = h('span', { class: 'depin-lab-device-kind' });
  private readonly _state = h('span');
  private readonly _rate = h('span');
  private readonly _number = h('span');
  private readonly _per = h('span');
  private readonly _unit = h('span', { class: 'depin-lab-wide' });
  private readonly _tokens = h('span');
  private readonly _earned = h('span', { class: 'depin-lab-device-earned' }, this._tokens, h('span', { class: 'depin-lab-wide' }, ' earned'));
  private readonly _lanes = LANE_STATES.map(state => [state, svg('path', { class: `depin-lab-lane-${state}` })] as const);
  private readonly _lane = svg('svg', { class: 'depin-lab-lane', viewBox: `0 0 ${LANE_W} ${LANE_H}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' }, ...this._lanes.map(([, node]) => node));
  readonly node: HTMLElement = h(
    'li',
    { class: 'depin-lab-device' },
    h('div', { class: 'depin-lab-line' }, this._dot, this._name, this._simulated, this._kind),
    this._lane as unknown as Node,
    h('div', { class: 'depin-lab-line depin-lab-quiet' }, this._state, this._rate, this._earned)
  );

  constructor() {
    this._rate.append(this._number, this._unit, this._per);
  }

  update({ device, lane, now_s }: Row): void {
    set(this.node, 'data-state', device.state);
    // the badge says it, so a name such as "phone-1 (simulated)" needn't
    text(this._name, device.simulated ? device.name.replace(/\s*\(simulated\)$/, '') : device.name);
    set(this._name, 'title', device.wallet ? `wallet ${device.wallet}` : device.worker_id);
    this._simulated.hidden = !device.simulated;
    text(this._state, device.state);
    text(this._kind, device.name.startsWith(device.kind) ? '' : device.kind);
    set(this._state, 'title', [device.kind, device.price && `price ${device.price}`].filter(Boolean).join(', '));
    this._rate.hidden = !device.iterations && !device.samples_per_s;
    text(this._number, device.samples_per_s ? rate(device.samples_per_s) : count(device.iterations));
    text(this._unit, device.samples_per_s ? ' samples' : '');
    text(this._per, device.samples_per_s ? '/s' : ' iterations');
    set(this._rate, 'title', `${count(device.samples)} samples in ${count(device.iterations)} iterations`);
    text(this._tokens, money(device.earned));
    set(this._earned, 'title', `${money(device.earned)} accrued, ${money(device.paid)} paid`);
    const paths = lanePaths(lane, now_s);
    set(this._lane, 'data-empty', lane.length === 0);
    for (const [state, node] of this._lanes) set(node, 'd', paths[state] ?? '');
  }
}
