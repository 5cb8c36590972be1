// One run as a card: is it alive, is it learning, can I afford it, and the buttons. An ended run is folded to its first lines.

import type { Action } from './connection';
import { Curve } from './curve';
import { h, set, text, type View } from './dom';
import { count, duration, loss, money, percent, rate } from './format';
import { MoneyView } from './money';
import { fraction, isActive, type Run } from './snapshot';

const STATES: Record<string, string> = { budget: 'budget reached', 'no-workers': 'no workers', 'solo-lost': 'worker lost' };
const ASKED: Record<Action, string> = { pause: 'pausing…', resume: 'resuming…', stop: 'stopping…' };

export type Control = (run: string, action: Action) => Promise<void>;

export class RunView implements View<Run> {
  private _run: Run | null = null;
  private _asked: { action: Action; state: string } | null = null;
  private _open: boolean | null = null; // null: as the state says

  private readonly _name = h('span', { class: 'depin-lab-run-name' });
  private readonly _state = h('span', { class: 'depin-lab-pill', role: 'status' });
  private readonly _where = h('span');
  private readonly _id = h('span', { class: 'depin-lab-id' });
  private readonly _fold = h('button', { class: 'depin-lab-fold', type: 'button' });
  private readonly _fill = h('i');
  private readonly _bar = h('div', { class: 'depin-lab-bar depin-lab-progress', role: 'progressbar', 'aria-label': 'Progress', 'aria-valuemin': '0', 'aria-valuemax': '100' }, this._fill);
  private readonly _done = h('span');
  private readonly _digest = h('div', { class: 'depin-lab-line depin-lab-quiet' });
  private readonly _time = h('span', { class: 'depin-lab-end' });
  private readonly _loss = h('span', { class: 'depin-lab-loss' });
  private readonly _rate = h('span', { class: 'depin-lab-end' });
  private readonly _curve = new Curve();
  private readonly _money = new MoneyView();
  private readonly _notice = h('p', { class: 'depin-lab-notice' });
  private readonly _alert = h('p', { class: 'depin-lab-alert', role: 'alert' });
  private readonly _pause = this._button('Pause', () => this._ask(this._run?.state === 'paused' ? 'resume' : 'pause'));
  private readonly _stop = this._button('Stop', () => this._ask('stop'), 'depin-lab-stop');
  private readonly _buttons = h('div', { class: 'depin-lab-buttons' }, this._pause, this._stop);
  private readonly _body = h(
    'div',
    { class: 'depin-lab-run-body' },
    this._bar,
    h('div', { class: 'depin-lab-line depin-lab-quiet' }, h('span', {}, this._done, h('span', { class: 'depin-lab-wide' }, ' iterations')), this._time),
    h('div', { class: 'depin-lab-line depin-lab-learn' }, h('span', { class: 'depin-lab-quiet' }, 'Loss'), this._loss, this._rate),
    this._curve.node,
    this._money.node,
    this._notice
  );
  readonly node = h(
    'li',
    { class: 'depin-lab-card' },
    h('div', { class: 'depin-lab-line' }, this._fold, this._name, this._state),
    h('div', { class: 'depin-lab-line depin-lab-quiet depin-lab-where' }, this._where, this._id),
    this._digest,
    this._body,
    this._buttons,
    this._alert
  );

  constructor(private readonly _control: Control) {
    this._alert.hidden = true;
    this._fold.addEventListener('click', () => {
      this._open = this._body.hidden;
      this._draw();
    });
  }

  update(run: Run): void {
    this._run = run;
    if (this._asked && (run.state !== this._asked.state || !isActive(run))) this._asked = null;
    this._draw();
  }

  private _button(label: string, act: () => void, kind = ''): HTMLButtonElement {
    const node = h('button', { type: 'button', class: `depin-lab-button ${kind}` }, label);
    node.addEventListener('click', act);
    return node;
  }

  private _ask(action: Action): void {
    if (!this._run || this._asked) return;
    this._asked = { action, state: this._run.state };
    this._alert.hidden = true;
    this._draw();
    this._control(this._run.run_id, action).catch((error: unknown) => {
      this._asked = null;
      text(this._alert, error instanceof Error ? error.message : String(error));
      this._alert.hidden = false;
      this._draw();
    });
  }

  private _draw(): void {
    const run = this._run;
    if (!run) return;
    const active = isActive(run);
    const name = run.name || run.run_id;
    const shown = this._asked ? ASKED[this._asked.action] : (STATES[run.state] ?? run.state);
    set(this.node, 'data-state', this._asked ? 'stopping' : run.state);
    set(this.node, 'data-run', run.run_id);
    set(this.node, 'aria-label', `Run ${name}, ${shown}`);
    text(this._name, name);
    set(this._name, 'title', name);
    text(this._state, shown);
    text(this._where, [run.strategy.split(':')[0], run.backend + (run.simulated && !run.backend.includes('simulated') ? ', simulated' : '')].filter(Boolean).join(' · '));
    set(this._where, 'title', [run.where, run.strategy].filter(Boolean).join(', ') || undefined);
    text(this._id, run.name ? run.run_id : '');

    const open = this._open ?? active;
    this._body.hidden = !open;
    this._fold.hidden = active;
    set(this._fold, 'aria-expanded', String(open));
    set(this._fold, 'aria-label', `${open ? 'Hide' : 'Show'} details of ${name}`);

    const part = fraction(run);
    this._fill.style.width = `${(part ?? 0) * 100}%`;
    set(this._bar, 'data-unknown', part === null && active);
    set(this._bar, 'aria-valuenow', part === null ? undefined : String(Math.floor(part * 100)));
    const total = run.iterations_total === null ? '' : ` / ${count(run.iterations_total)}`;
    text(this._done, `${part === null ? '' : `${percent(part)} · `}${count(run.iterations_done)}${total}`);
    text(this._time, active && run.eta_s !== null ? `${duration(run.eta_s)} left` : duration(run.elapsed_s));
    set(this._done, 'title', `${count(run.iterations_done)}${total} iterations, ${count(run.samples_done)} samples`);
    set(this._time, 'title', `${duration(run.elapsed_s)} elapsed`);

    const last = run.loss[run.loss.length - 1];
    text(this._loss, last ? loss(last[1]) : '–');
    text(this._rate, active && run.samples_per_s ? `${rate(run.samples_per_s)} samples/s` : '');
    this._digest.hidden = open;
    const figures = [last ? `loss ${loss(last[1])}` : '', `${money(run.spent)} ${run.spent.tag}`, duration(run.elapsed_s)];
    text(this._digest, figures.filter(Boolean).join(' · '));
    this._curve.update(run.loss);
    this._money.update(run, active);
    text(this._notice, run.notices[run.notices.length - 1] ?? '');
    this._notice.hidden = run.notices.length === 0;

    this._buttons.hidden = !active;
    text(this._pause, run.state === 'paused' ? 'Resume' : 'Pause');
    set(this._pause, 'aria-label', `${run.state === 'paused' ? 'Resume' : 'Pause'} ${name}`);
    set(this._stop, 'aria-label', `Stop ${name}`);
    const busy = this._asked !== null || run.state === 'stopping';
    set(this._pause, 'disabled', busy || run.state === 'planning');
    set(this._stop, 'disabled', busy);
  }
}
