/** A button that opens a list of actions; arrow keys move, Escape and a click elsewhere close it. */
import type { JSX } from "preact";
import { useId, useLayoutEffect, useRef, useState } from "preact/hooks";

import { Icon, type IconName } from "./icons.tsx";

export interface MenuItem {
  name: string;
  icon?: IconName;
  isDanger?: boolean;
  /** Given for one of several choices: whether it is the present one. */
  isChosen?: boolean;
  run: () => void;
}

interface MenuProps {
  /** What the menu is for; the button's name if it has no text. */
  name: string;
  icon?: IconName;
  text?: string;
  items: MenuItem[];
  class?: string;
}

export function Menu({ name, icon, text, items, class: extra }: MenuProps): JSX.Element {
  const [isOpen, setOpen] = useState(false);
  const root = useRef<HTMLDivElement>(null);
  const button = useRef<HTMLButtonElement>(null);
  const list = useId();

  const close = (isFocusKept: boolean): void => {
    setOpen(false);
    if (isFocusKept) button.current?.focus();
  };

  // Effects that wait for a frame would come too late on a busy phone: a tap elsewhere would close nothing.
  useLayoutEffect(() => {
    if (!isOpen) return undefined;
    const found = menuItems(root.current);
    (found.find((item) => item.ariaChecked === "true") ?? found[0])?.focus();
    const leave = (event: PointerEvent): void => {
      if (!root.current?.contains(event.target as Node)) close(false);
    };
    const escape = (event: KeyboardEvent): void => {
      if (event.key !== "Escape") return;
      close(true);
      event.preventDefault();
      event.stopPropagation();
    };
    addEventListener("pointerdown", leave);
    addEventListener("keydown", escape, true); // wherever the focus is, and before what is around the menu
    return () => {
      removeEventListener("pointerdown", leave);
      removeEventListener("keydown", escape, true);
    };
  }, [isOpen]);

  const onKeyDown = (event: KeyboardEvent): void => {
    if (!isOpen) return;
    if (event.key === "Tab") close(false);
    else if (!moveFocus(menuItems(root.current), event.key)) return;
    if (event.key !== "Tab") event.preventDefault();
    event.stopPropagation();
  };

  return (
    <div class={`menu ${extra ?? ""}`} ref={root} onKeyDown={onKeyDown}>
      <button
        ref={button}
        type="button"
        class={text === undefined ? "icon-button" : "button quiet"}
        aria-haspopup="menu"
        aria-expanded={isOpen}
        aria-controls={isOpen ? list : undefined}
        aria-label={text === undefined ? name : `${name}: ${text}`}
        title={name}
        onClick={() => setOpen(!isOpen)}
      >
        {icon && <Icon name={icon} />}
        {text !== undefined && <span>{text}</span>}
      </button>
      {isOpen && <List id={list} name={name} items={items} onChoose={() => close(true)} />}
    </div>
  );
}

interface ListProps {
  id: string;
  name: string;
  items: MenuItem[];
  onChoose: () => void;
}

function List({ id, name, items, onChoose }: ListProps): JSX.Element {
  return (
    <div class="menu-list" id={id} role="menu" aria-label={name}>
      {items.map((item) => (
        <button
          key={item.name}
          type="button"
          tabIndex={-1}
          class={item.isDanger ? "menu-item danger" : "menu-item"}
          role={item.isChosen === undefined ? "menuitem" : "menuitemradio"}
          aria-checked={item.isChosen}
          onClick={() => {
            onChoose();
            item.run();
          }}
        >
          {item.icon ? <Icon name={item.icon} /> : null}
          <span>{item.name}</span>
          {item.isChosen ? <Icon name="check" /> : null}
        </button>
      ))}
    </div>
  );
}

function menuItems(root: HTMLElement | null): HTMLElement[] {
  return [...(root?.querySelectorAll<HTMLElement>(".menu-item") ?? [])];
}

/** Move the focus among items by a key. Return false for another key. */
function moveFocus(items: HTMLElement[], key: string): boolean {
  const at = items.indexOf(document.activeElement as HTMLElement);
  const targets: Record<string, number> = {
    ArrowDown: (at + 1) % items.length,
    ArrowUp: (at - 1 + items.length) % items.length,
    Home: 0,
    End: items.length - 1,
  };
  const target = targets[key];
  if (target === undefined) return false;
  items[target]?.focus();
  return true;
}
