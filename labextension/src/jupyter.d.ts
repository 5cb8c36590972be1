// The little of JupyterLab 4's API that is used here. JupyterLab shares the modules themselves when the extension loads.
// Types of our own keep the toolchain at two npm packages.

declare module '@lumino/coreutils' {
  export class Token<T> {
    constructor(name: string, description?: string);
    readonly name: string;
    private readonly _type: T;
  }
}

declare module '@lumino/messaging' {
  export class Message {
    readonly type: string;
  }
}

declare module '@lumino/signaling' {
  export interface ISignal<T, U> {
    connect(slot: (sender: T, args: U) => void, thisArg?: unknown): boolean;
    disconnect(slot: (sender: T, args: U) => void, thisArg?: unknown): boolean;
  }
  export class Signal<T, U> implements ISignal<T, U> {
    constructor(sender: T);
    connect(slot: (sender: T, args: U) => void, thisArg?: unknown): boolean;
    disconnect(slot: (sender: T, args: U) => void, thisArg?: unknown): boolean;
    emit(args: U): void;
    static clearData(object: unknown): void;
  }
}

declare module '@lumino/widgets' {
  import type { Message } from '@lumino/messaging';
  export interface Title {
    label: string;
    caption: string;
    icon: unknown;
  }
  export class Widget {
    constructor(options?: { node?: HTMLElement });
    id: string;
    readonly node: HTMLElement;
    readonly title: Title;
    readonly isDisposed: boolean;
    readonly isVisible: boolean;
    addClass(name: string): void;
    dispose(): void;
    setHidden(hidden: boolean): void;
    protected onAfterShow(message: Message): void;
    protected onAfterAttach(message: Message): void;
  }
}

declare module '@jupyterlab/coreutils' {
  export namespace URLExt {
    function join(...parts: string[]): string;
  }
}

declare module '@jupyterlab/services' {
  export namespace ServerConnection {
    interface ISettings {
      readonly baseUrl: string;
      readonly wsUrl: string;
      readonly token: string;
      readonly appendToken: boolean;
      readonly WebSocket: typeof WebSocket;
    }
    /** Adds Jupyter's token and XSRF header. */
    function makeRequest(url: string, init: RequestInit, settings: ISettings): Promise<Response>;
  }
  export interface ServiceManager {
    readonly serverSettings: ServerConnection.ISettings;
  }
}

declare module '@jupyterlab/ui-components' {
  export class LabIcon {
    constructor(options: { name: string; svgstr: string });
    element(options?: { tag?: string; width?: string; height?: string; className?: string }): HTMLElement;
  }
}

declare module '@jupyterlab/application' {
  import type { Token } from '@lumino/coreutils';
  import type { Widget } from '@lumino/widgets';
  import type { ServiceManager } from '@jupyterlab/services';
  export interface CommandRegistry {
    addCommand(
      id: string,
      options: {
        label: string | ((args: Record<string, unknown>) => string);
        caption?: string;
        icon?: (args: Record<string, unknown>) => unknown;
        isEnabled?: (args: Record<string, unknown>) => boolean;
        execute: (args: Record<string, unknown>) => unknown;
        describedBy?: unknown;
      }
    ): unknown;
    execute(id: string, args?: Record<string, unknown>): Promise<unknown>;
    notifyCommandChanged(id?: string): void;
  }
  export interface JupyterFrontEnd {
    readonly commands: CommandRegistry;
    readonly serviceManager: ServiceManager;
    readonly shell: {
      add(widget: Widget, area?: string, options?: { rank?: number }): void;
      activateById(id: string): void;
    };
  }
  export interface JupyterFrontEndPlugin<T> {
    id: string;
    description?: string;
    autoStart: boolean;
    requires?: Token<unknown>[];
    optional?: Token<any>[];
    activate: (app: JupyterFrontEnd, ...services: any[]) => T | Promise<T>;
  }
  export interface ILayoutRestorer {
    add(widget: Widget, name: string): void;
  }
  export const ILayoutRestorer: Token<ILayoutRestorer>;
}

declare module '@jupyterlab/apputils' {
  import type { Token } from '@lumino/coreutils';
  export interface ICommandPalette {
    addItem(options: { command: string; category: string; args?: Record<string, unknown> }): unknown;
  }
  export const ICommandPalette: Token<ICommandPalette>;
  export namespace Notification {
    function error(message: string, options?: { autoClose?: number | false }): string;
    function info(message: string, options?: { autoClose?: number | false }): string;
  }
}

declare module '@jupyterlab/launcher' {
  import type { Token } from '@lumino/coreutils';
  export interface ILauncher {
    add(options: { command: string; category?: string; rank?: number; args?: Record<string, unknown> }): unknown;
  }
  export const ILauncher: Token<ILauncher>;
}

declare module '@jupyterlab/statusbar' {
  import type { Token } from '@lumino/coreutils';
  import type { Widget } from '@lumino/widgets';
  export interface IStatusBar {
    registerStatusItem(id: string, options: { item: Widget; align?: 'left' | 'right' | 'middle'; rank?: number; isActive?: () => boolean }): unknown;
  }
  export const IStatusBar: Token<IStatusBar>;
}

declare module '*.css' {
  const text: string;
  export default text;
}
declare module '*.svg' {
  const text: string;
  export default text;
}
