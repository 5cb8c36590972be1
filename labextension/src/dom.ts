// Elements that are made once and then only changed where their content changed, so that focus and screen readers stay undisturbed.

type Attributes = Record<string, string | boolean | undefined>;

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) set(node, name, value);
  node.append(...children);
  return node;
}

export function svg<K extends keyof SVGElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Node[]): SVGElementTagNameMap[K] {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) set(node, name, value);
  node.append(...children);
  return node;
}

/** Sets an attribute; `true` as empty, `false` and undefined remove it. */
export function set(node: Element, name: string, value: string | boolean | undefined): void {
  if (value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const text = value === true ? '' : value;
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

export function text(node: Node, value: string): void {
  if (node.textContent !== value) node.textContent = value;
}

export interface View<T> {
  readonly node: HTMLElement;
  update(item: T): void;
}

/** A list of views in the order of its items, one view a key, kept as long as its key is there. */
export class Keyed<T> {
  private readonly _views = new Map<string, View<T>>();

  constructor(
    private readonly _parent: HTMLElement,
    private readonly _key: (item: T) => string,
    private readonly _make: (item: T) => View<T>
  ) {}

  update(items: T[]): void {
    const keys = new Set(items.map(this._key));
    for (const [key, view] of this._views) {
      if (!keys.has(key)) {
        view.node.remove();
        this._views.delete(key);
      }
    }
    let place: Element | null = this._parent.firstElementChild;
    for (const item of items) {
      const key = this._key(item);
      let view = this._views.get(key);
      if (!view) this._views.set(key, (view = this._make(item)));
      view.update(item);
      if (view.node === place) place = place.nextElementSibling;
      else this._parent.insertBefore(view.node, place);
    }
  }
}
