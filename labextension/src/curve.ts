// The loss curve: a line over a soft area, with its least and greatest value beside it.

import { h, set, svg, text } from './dom';
import { loss as lossText } from './format';

const W = 240;
const H = 56;
const PAD = 3;

/** The curve's points in the drawing's coordinates. Values that aren't finite are left out. */
export function path(points: [number, number][], width = W, height = H): [x: number, y: number][] {
  const real = points.filter(([, y]) => Number.isFinite(y));
  const ys = real.map(([, y]) => y);
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const first = real[0]?.[0] ?? 0;
  const last = real[real.length - 1]?.[0] ?? 0;
  const place = (value: number, from: number, to: number): number => (to > from ? (value - from) / (to - from) : 0.5);
  return real.map(([x, y]) => [PAD + place(x, first, last) * (width - 2 * PAD), height - PAD - place(y, low, high) * (height - 2 * PAD)]);
}

export class Curve {
  private readonly _area = svg('path', { class: 'depin-lab-curve-area' });
  private readonly _line = svg('path', { class: 'depin-lab-curve-line', 'vector-effect': 'non-scaling-stroke' });
  private readonly _end = svg('path', { class: 'depin-lab-curve-end', 'vector-effect': 'non-scaling-stroke' });
  private readonly _svg = svg(
    'svg',
    { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: 'none', role: 'img' },
    this._area,
    this._line,
    this._end
  );
  private readonly _high = h('span');
  private readonly _low = h('span');
  readonly node = h('div', { class: 'depin-lab-curve' }, this._svg as unknown as Node, h('div', { class: 'depin-lab-curve-scale', 'aria-hidden': 'true' }, this._high, this._low));

  update(points: [number, number][]): void {
    const xy = path(points);
    this.node.hidden = xy.length < 2;
    const first = points[0];
    const last = points[points.length - 1];
    if (xy.length < 2 || !first || !last) return;
    const line = xy.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join('L');
    const [x, y] = xy[xy.length - 1] as [number, number];
    set(this._line, 'd', `M${line}`);
    set(this._area, 'd', `M${line}L${x.toFixed(1)} ${H}L${PAD} ${H}Z`);
    set(this._end, 'd', `M${x.toFixed(1)} ${y.toFixed(1)}h.01`);
    const ys = points.map(([, value]) => value).filter(Number.isFinite);
    text(this._high, lossText(Math.max(...ys)));
    text(this._low, lossText(Math.min(...ys)));
    set(this._svg, 'aria-label', `Loss from ${lossText(first[1])} to ${lossText(last[1])} over ${last[0]} iterations`);
  }
}
