// The one WebSocket to the Jupyter server, through which the hub's status comes; and the controls, which go by POST.
// (Not EventSource: six of them block all REST calls of a page.) No kernel takes part.

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import { Signal, type ISignal } from '@lumino/signaling';
import { EMPTY, type Snapshot } from './snapshot';

const FIRST_BACKOFF_MS = 500;
const MAX_BACKOFF_MS = 15_000;
const API = 'depin-nb/api';

/** `live`: pushed as it changes. `away`: the Jupyter server is not reached now. `missing`: it has no depin_nb.server extension. */
export type Health = 'connecting' | 'live' | 'away' | 'missing';

export type Action = 'pause' | 'resume' | 'stop';

export class Connection {
  snapshot: Snapshot = EMPTY;
  health: Health = 'connecting';
  private readonly _changed = new Signal<this, void>(this);
  private _socket: WebSocket | null = null;
  private _failures = 0;
  private _disposed = false;

  constructor(private readonly _settings: ServerConnection.ISettings) {
    window.addEventListener('online', this._soon);
    this._open();
  }

  /** Emitted whenever `snapshot` or `health` changed. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** Asks the hub; rejects with a message for people. */
  async control(run: string, action: Action): Promise<void> {
    const url = URLExt.join(this._settings.baseUrl, API, 'control');
    const body = JSON.stringify({ run, action });
    const response = await ServerConnection.makeRequest(url, { method: 'POST', body }, this._settings);
    if (response.ok) return;
    const problem = (await response.json().catch(() => ({}))) as { message?: string; hint?: string };
    throw new Error([problem.message ?? `The server answered ${response.status}.`, problem.hint].filter(Boolean).join(' '));
  }

  dispose(): void {
    this._disposed = true;
    window.removeEventListener('online', this._soon);
    this._socket?.close();
    Signal.clearData(this);
  }

  private _open(): void {
    if (this._disposed) return;
    const { wsUrl, token, appendToken } = this._settings;
    const query = appendToken && token ? `?token=${encodeURIComponent(token)}` : '';
    const socket = new this._settings.WebSocket(URLExt.join(wsUrl, API, 'events') + query);
    this._socket = socket;
    socket.onmessage = event => this._heard(String(event.data));
    socket.onclose = () => this._closed(socket);
  }

  private _heard(data: string): void {
    try {
      this.snapshot = JSON.parse(data) as Snapshot;
    } catch {
      return; // cut off: the next message is whole
    }
    this._failures = 0;
    this._set('live');
  }

  private _closed(socket: WebSocket): void {
    if (this._disposed || this._socket !== socket) return;
    this._socket = null;
    const wait = Math.min(FIRST_BACKOFF_MS * 2 ** this._failures, MAX_BACKOFF_MS);
    this._failures = Math.min(this._failures + 1, 10);
    if (this.health !== 'missing') this._set('away');
    if (this._failures >= 2) void this._diagnose();
    window.setTimeout(this._soon, wait * (0.75 + Math.random() / 2));
  }

  private readonly _soon = (): void => {
    if (!this._socket) this._open();
  };

  /** A refused WebSocket doesn't say why; a plain GET does. */
  private async _diagnose(): Promise<void> {
    try {
      const response = await ServerConnection.makeRequest(URLExt.join(this._settings.baseUrl, API, 'status'), {}, this._settings);
      if (response.status === 404 && this.health !== 'live') this._set('missing');
    } catch {
      if (this.health === 'missing') this._set('away');
    }
  }

  private _set(health: Health): void {
    this.health = health;
    this._changed.emit();
  }
}
