// What a run costs: spent, rate, projection and budget, each figure with its tag; tokens accrued and paid.

import { h, set, text } from './dom';
import { money } from './format';
import type { Figure, Run } from './snapshot';

const WARN_AT = 0.8; // where the hub warns as well

class Line {
  private readonly _value = h('span', { class: 'depin-lab-value' });
  private readonly _tag = h('span', { class: 'depin-lab-tag' });
  readonly nodes: [HTMLElement, HTMLElement];

  constructor(label: string, title: string) {
    this.nodes = [h('dt', { title }, label), h('dd', {}, this._value, this._tag)];
  }

  set(value: string | null, tag: string): void {
    for (const node of this.nodes) node.hidden = value === null;
    text(this._value, value ?? '');
    text(this._tag, tag);
  }

  figure(figure: Figure | null, per = ''): void {
    this.set(figure && money(figure) + per, figure?.tag ?? '');
  }
}

export class MoneyView {
  private readonly _spent = new Line('Spent', 'What the accepted work cost so far');
  private readonly _rate = new Line('Rate', 'Cost an hour at the present pace');
  private readonly _projected = new Line('In all', 'What the whole run will cost');
  private readonly _accrued = new Line('Tokens', 'What the devices earned; paid at the end of the run');
  private readonly _paid = new Line('Paid', 'Tokens transferred on the chain');
  private readonly _used = h('i', { class: 'depin-lab-budget-spent' });
  private readonly _reserved = h('i', { class: 'depin-lab-budget-reserved' });
  private readonly _meter = h('div', { class: 'depin-lab-bar depin-lab-budget', role: 'meter', 'aria-label': 'Budget spent', 'aria-valuemin': '0', 'aria-valuemax': '100' }, this._used, this._reserved, h('b', { title: '80 %: the hub warns' }));
  private readonly _of = h('span');
  private readonly _held = h('span', { class: 'depin-lab-end', title: 'Held for the leases that are out: their worst case' });
  private readonly _budget = h('div', {}, this._meter, h('div', { class: 'depin-lab-line depin-lab-quiet depin-lab-wrap' }, this._of, this._held));
  readonly node = h(
    'div',
    { class: 'depin-lab-money' },
    h('dl', {}, ...[this._spent, this._rate, this._projected, this._accrued, this._paid].flatMap(line => line.nodes)),
    this._budget
  );

  update(run: Run, active: boolean): void {
    this._spent.figure(run.spent);
    this._rate.figure(active ? run.rate_per_h : null, '/h');
    this._projected.figure(active ? run.projected : null);
    this._accrued.set(money(run.tokens_accrued), 'accrued');
    this._paid.set(run.tokens_paid.units ? money(run.tokens_paid) : null, 'settled');
    const budget = run.budget;
    this._budget.hidden = budget === null;
    if (budget === null) return;
    const share = (units: number): number => (budget.units > 0 ? Math.min(1, units / budget.units) : 1);
    const spent = share(run.spent.units);
    const reserved = Math.min(1 - spent, share(run.reserved.units));
    this._used.style.width = `${spent * 100}%`;
    this._reserved.style.width = `${reserved * 100}%`;
    set(this._meter, 'data-warn', spent >= WARN_AT);
    set(this._meter, 'aria-valuenow', String(Math.round(spent * 100)));
    set(this._meter, 'aria-valuetext', `${money(run.spent)} of ${money(budget)}`);
    text(this._of, `${Math.round(spent * 100)} % of ${money(budget)}`);
    text(this._held, run.reserved.units ? `${money(run.reserved)} reserved` : '');
  }
}
