/** The views of the page. The first one is part of the first load, the others load when needed. */
import type { ComponentType } from "preact";

import { ChatView } from "./views/chat/chat_view.tsx";

export interface View {
  /** Its name in the address: `#/NAME`. */
  name: string;
  /** Its name in the navigation. */
  title: string;
  component?: ComponentType;
  load?: () => Promise<ComponentType>;
}

export const VIEWS: readonly View[] = [
  { name: "chat", title: "Chat", component: ChatView },
  {
    name: "race",
    title: "Race",
    load: () => import("./views/race/race_view.tsx").then((module) => module.RaceView),
  },
  {
    name: "models",
    title: "Models",
    load: () => import("./views/models/models_view.tsx").then((module) => module.ModelsView),
  },
  {
    name: "plan",
    title: "Plan",
    load: () => import("./views/plan/plan_view.tsx").then((module) => module.PlanView),
  },
];

/** Return the view of a name; the first one for an unknown name. */
export function viewOf(name: string): View {
  return VIEWS.find((view) => view.name === name) ?? VIEWS[0]!;
}
