// The status bar's item: state, money and tokens of the newest active run. A click opens the panel.

import { Widget } from '@lumino/widgets';
import type { Connection } from './connection';
import { h, set, text } from './dom';
import { money, percent } from './format';
import { depinIcon } from './icon';
import { fraction, inOrder, isActive, type Snapshot } from './snapshot';

function devices(n: number): string {
  return n === 0 ? 'no devices' : n === 1 ? '1 device' : `${n} devices`;
}

/** What the item says, and its tooltip. */
export function summary(snapshot: Snapshot): { state: string; figures: string; tooltip: string } {
  if (snapshot.hub === null) return { state: 'no hub', figures: '', tooltip: 'depin: no hub is running. Click to see how to start one.' };
  const run = inOrder(snapshot.runs)[0];
  if (!run) return { state: 'ready', figures: devices(snapshot.workers.length), tooltip: 'depin: the hub runs and has no runs yet' };
  const part = fraction(run);
  const others = snapshot.runs.filter(isActive).length - 1;
  const state = [run.state, isActive(run) && part !== null ? percent(part) : '', others > 0 ? `+${others}` : ''].filter(Boolean).join(' ');
  const spent = money(run.spent) + (run.budget ? ` / ${money(run.budget)}` : '');
  const figures = `${spent} ${run.spent.tag} · ${money(run.tokens_accrued)} accrued`;
  const simulated = run.simulated ? ', on simulated devices' : '';
  const tooltip = [
    `depin ${run.name || run.run_id}: ${run.state}${simulated}`,
    `${money(run.spent)} spent (${run.spent.tag})${run.budget ? ` of ${money(run.budget)} budget` : ''}`,
    `${money(run.tokens_accrued)} accrued, ${money(run.tokens_paid)} paid`
  ].join('\n');
  return { state, figures, tooltip };
}

export class StatusItem extends Widget {
  private readonly _state = h('span');
  private readonly _figures = h('span', { class: 'depin-lab-status-figures' });

  constructor(
    private readonly _connection: Connection,
    open: () => void
  ) {
    super({ node: h('button', { type: 'button' }) });
    this.addClass('depin-lab-status');
    this.node.append(depinIcon.element({ tag: 'span', width: '15px', height: '15px', className: 'depin-lab-status-icon' }), this._state, this._figures);
    this.node.addEventListener('click', open);
    _connection.changed.connect(this._draw, this);
    this._draw();
  }

  override dispose(): void {
    if (this.isDisposed) return;
    this._connection.changed.disconnect(this._draw, this);
    super.dispose();
  }

  private _draw(): void {
    const { state, figures, tooltip } = summary(this._connection.snapshot);
    text(this._state, state);
    text(this._figures, figures);
    set(this.node, 'title', tooltip);
    set(this.node, 'aria-label', tooltip.replace(/\n/g, '. '));
    set(this.node, 'data-state', this._connection.snapshot.hub === null ? 'none' : (state.split(' ')[0] ?? ''));
    set(this.node, 'data-health', this._connection.health);
  }
}
