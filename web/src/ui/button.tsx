/** Buttons: with text, or with an icon and a name that is read and shown as a tooltip. */
import type { ComponentChildren, JSX } from "preact";

import { Icon, type IconName } from "./icons.tsx";

type Native = Omit<JSX.IntrinsicElements["button"], "icon" | "children">;

interface ButtonProps extends Native {
  kind?: "plain" | "primary" | "danger" | "quiet";
  icon?: IconName;
  children: ComponentChildren;
}

export function Button({ kind = "plain", icon, children, class: extra, ...rest }: ButtonProps): JSX.Element {
  return (
    <button type="button" {...rest} class={`button ${kind} ${extra ?? ""}`}>
      {icon && <Icon name={icon} />}
      <span>{children}</span>
    </button>
  );
}

interface IconButtonProps extends Native {
  icon: IconName;
  /** What the button does. */
  name: string;
}

export function IconButton({ icon, name, class: extra, ...rest }: IconButtonProps): JSX.Element {
  return (
    <button type="button" {...rest} class={`icon-button ${extra ?? ""}`} aria-label={name} title={name}>
      <Icon name={icon} />
    </button>
  );
}
