// The hub's status as it travels: `Status.to_dict()` and `Device` of depin_nb/core/status.py.

export interface Amount {
  units: number;
  currency: string;
}

export type Tag = 'quoted' | 'estimated' | 'metered' | 'settled';

export interface Figure extends Amount {
  tag: Tag;
}

export type Span = [start: number, end: number, state: string];

export interface Device {
  worker_id: string;
  name: string;
  kind: string;
  simulated: boolean;
  state: string;
  iterations: number;
  samples: number;
  samples_per_s: number;
  lane: Span[];
  earned: Amount;
  paid: Amount;
  wallet: string;
  price: string;
}

export interface Run {
  run_id: string;
  name: string;
  state: string;
  strategy: string;
  where: string;
  backend: string;
  simulated: boolean;
  started_at: number;
  elapsed_s: number;
  entry: number;
  iterations_done: number;
  iterations_total: number | null;
  samples_done: number;
  samples_per_s: number;
  eta_s: number | null;
  loss: [number, number][];
  devices: Device[];
  budget: Amount | null;
  spent: Figure;
  reserved: Amount;
  rate_per_h: Figure;
  projected: Figure | null;
  tokens_accrued: Amount;
  tokens_paid: Amount;
  signatures: string[];
  merges: number;
  notices: string[];
}

export interface Snapshot {
  hub: Record<string, unknown> | null;
  runs: Run[];
  workers: Device[];
}

export const EMPTY: Snapshot = { hub: null, runs: [], workers: [] };

const ACTIVE = new Set(['planning', 'running', 'paused', 'stopping', 'waiting']);

export function isActive(run: Run): boolean {
  return ACTIVE.has(run.state);
}

/** How much of the run is done, 0 to 1; null when its length isn't known. */
export function fraction(run: Run): number | null {
  if (run.state === 'finished') return 1;
  return run.iterations_total ? Math.min(1, run.iterations_done / run.iterations_total) : null;
}

/** Active runs first, each group newest first. */
export function inOrder(runs: Run[]): Run[] {
  return [...runs].sort((a, b) => Number(isActive(b)) - Number(isActive(a)) || b.started_at - a.started_at);
}

/** A device with the lane of the run that it works for, and that run's clock. */
export interface Row {
  device: Device;
  lane: Span[];
  now_s: number;
}

/** The hub's devices, each with what its active run says of it. */
export function rows(snapshot: Snapshot): Row[] {
  const at = new Map<string, Row>();
  for (const run of snapshot.runs.filter(isActive)) {
    for (const device of run.devices) {
      at.set(device.worker_id, { device, lane: device.lane, now_s: run.elapsed_s });
    }
  }
  const known = new Set(snapshot.workers.map(worker => worker.worker_id));
  const listed = snapshot.workers.map(device => {
    const live = at.get(device.worker_id);
    if (!live) return { device, lane: [], now_s: 0 };
    const rate = device.samples_per_s || live.device.samples_per_s;
    return { device: { ...device, samples_per_s: rate }, lane: live.lane, now_s: live.now_s };
  });
  return [...listed, ...[...at.values()].filter(row => !known.has(row.device.worker_id))];
}
