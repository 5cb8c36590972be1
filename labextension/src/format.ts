// Numbers for people. Amounts follow `Amount.text()` of depin_nb/core/amount.py.

import type { Amount } from './snapshot';

const CURRENCIES: Record<string, { decimals: number; sign: string }> = {
  USD: { decimals: 6, sign: '$' },
  DPN: { decimals: 6, sign: '' }
};

/** `$0.031` or `12.50 DPN`; small amounts keep two significant digits. An unknown currency is shown in base units, never guessed. */
export function money(amount: Amount, withCode = true): string {
  const currency = CURRENCIES[amount.currency];
  if (!currency) return `${amount.units} ${amount.currency} base units`;
  const value = amount.units / 10 ** currency.decimals;
  let digits = 2;
  while (digits < currency.decimals && value !== 0 && Math.abs(value) < 10 ** (1 - digits)) digits++;
  const text = value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
  if (currency.sign) return currency.sign + text;
  return withCode ? `${text} ${amount.currency}` : text;
}

/** `0:42`, `12:05`, `1:02:09`. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const two = (n: number): string => String(n).padStart(2, '0');
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

export function count(n: number): string {
  return Math.round(n).toLocaleString('en-US');
}

/** A rate with three significant digits below 100. */
export function rate(n: number): string {
  return n >= 100 || n === 0 ? count(n) : String(Number(n.toPrecision(3)));
}

export function loss(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 10000) ? value.toExponential(2) : value.toFixed(size < 0.1 ? 4 : size < 100 ? 3 : 1);
}

export function percent(part: number): string {
  return `${Math.floor(part * 100)} %`;
}
