/** The panels beside a chat (below it on a phone), one of which may be open. */
import { signal } from "@preact/signals";
import type { ComponentType } from "preact";

import type { IconName } from "../../ui/icons.tsx";
import { Parameters } from "./parameters.tsx";
import { PassesPanel } from "./passes_panel.tsx";

export interface Panel {
  name: string;
  title: string;
  icon: IconName;
  component: ComponentType;
}

export const PANELS: readonly Panel[] = [
  { name: "passes", title: "Passes", icon: "passes", component: PassesPanel },
  { name: "parameters", title: "Parameters", icon: "settings", component: Parameters },
];

/** The name of the open panel. */
export const openPanel = signal<string | null>(null);

/** Whether the list of chats is shown on a narrow page. */
export const isListOpen = signal(false);
