/** The model of the open chat, in the bar at the top. */
import type { JSX } from "preact";

import { changeSettings, openChat } from "../../chat/chats.ts";
import { modelOf, models, modelsState, refreshModels } from "../../models.ts";
import { Button } from "../../ui/button.tsx";
import { Menu } from "../../ui/menu.tsx";

export function ModelMenu(): JSX.Element | null {
  if (modelsState.value === "unknown") return null;
  if (modelsState.value === "gone") return <span class="unreachable">The server does not answer</span>;
  if (modelsState.value === "refused") {
    return (
      <Button kind="quiet" onClick={() => void refreshModels()}>
        Enter a key
      </Button>
    );
  }
  const named = openChat.value.settings.model;
  const present = modelOf(named);
  const items = models.value.map((model) => ({
    name: model.state === "loaded" ? `${model.id} (loaded)` : model.id,
    isChosen: model === present,
    run: () => changeSettings({ model: model.id }),
  }));
  return <Menu name="Model" text={present?.id ?? named ?? "no model"} items={items} class="to-left model-menu" />;
}

/** Open the list of models. */
export function focusModels(): void {
  document.querySelector<HTMLElement>(".model-menu > button")?.click();
}
