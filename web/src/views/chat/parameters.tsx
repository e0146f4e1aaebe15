/** The panel with the parameters of the open chat. */
import type { JSX } from "preact";
import { useState } from "preact/hooks";

import type { Model } from "../../api/types.ts";
import { changeSettings, openChat } from "../../chat/chats.ts";
import type { Settings } from "../../chat/model.ts";
import { parseSchema, parseTools, SettingError } from "../../chat/request.ts";
import { modelOf } from "../../models.ts";
import { Button } from "../../ui/button.tsx";
import { Field, Slider, TextArea, TextField } from "../../ui/fields.tsx";
import { countText } from "../../units.ts";

const SCHEMA_EXAMPLE = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}';
const TOOLS_EXAMPLE = '[{"name": "get_weather", "description": "…", "parameters": {"type": "object"}}]';

export function Parameters(): JSX.Element {
  const { settings } = openChat.value;
  const model = modelOf(settings.model);
  const usual = model?.sampling ?? {};
  return (
    <div class="parameters">
      <TextArea
        label="System prompt"
        rows={4}
        value={settings.system}
        placeholder="How the model should answer"
        onInput={(system) => changeSettings({ system })}
      />
      <OptionalSlider
        label="Temperature"
        name="temperature"
        max={2}
        usual={usual.temperature}
        hint="0 takes the likeliest token each time."
      />
      <OptionalSlider
        label="Top p"
        name="topP"
        max={1}
        usual={usual.top_p}
        hint="Only the likeliest tokens with this share in all."
      />
      <OptionalNumber
        label="Longest answer, in tokens"
        name="maxTokens"
        least={1}
        placeholder={lengthText(model)}
      />
      <OptionalNumber
        label="Seed"
        name="seed"
        least={0}
        placeholder="random"
        hint="The same seed gives the same answer. Empty: drawn anew for each."
      />
      <Thinking />
      <TextArea
        label="Answer as JSON of this schema"
        rows={4}
        isCode
        value={settings.schema}
        placeholder={SCHEMA_EXAMPLE}
        error={problemWith(() => parseSchema(settings.schema))}
        onInput={(schema) => changeSettings({ schema })}
      />
      <TextArea
        label="Tools"
        rows={4}
        isCode
        value={settings.tools}
        placeholder={TOOLS_EXAMPLE}
        hint="A JSON list. When the model calls one, you type its result."
        error={problemWith(() => parseTools(settings.tools))}
        onInput={(tools) => changeSettings({ tools })}
      />
    </div>
  );
}

function problemWith(parse: () => unknown): string | null {
  try {
    parse();
    return null;
  } catch (error) {
    if (error instanceof SettingError) return error.message;
    throw error;
  }
}

interface SliderProps {
  label: string;
  name: "temperature" | "topP";
  max: number;
  /** The model's own default; undefined while it is not known, before the model is loaded. */
  usual: number | undefined;
  hint: string;
}

function OptionalSlider({ label, name, max, usual, hint }: SliderProps): JSX.Element {
  const value = openChat.value.settings[name];
  const set = (to: number | null): void => changeSettings({ [name]: to } as Partial<Settings>);
  return (
    <div class="optional">
      <Slider
        label={label}
        value={value ?? usual ?? 1}
        min={0}
        max={max}
        step={0.05}
        format={(shown) => (value !== null ? shown.toFixed(2) : usual === undefined ? "default" : usual.toFixed(2))}
        hint={value === null ? `${hint} ${defaultText(usual)}` : hint}
        onInput={set}
      />
      {value !== null && (
        <Button kind="quiet" class="reset" onClick={() => set(null)} aria-label={`${label}: use the model's default`}>
          Reset
        </Button>
      )}
    </div>
  );
}

/** Return how long answers are without a limit of the user's. */
function lengthText(model: Model | undefined): string {
  const limit = model?.sampling?.max_tokens;
  return limit ? `at most ${countText(Math.min(limit, model.max_model_len ?? limit))}` : "as long as the model likes";
}

function defaultText(usual: number | undefined): string {
  return usual === undefined ? "The model's default is known once it is loaded." : "This is the model's default.";
}

interface NumberProps {
  label: string;
  name: "maxTokens" | "seed";
  least: number;
  /** What counts while nothing is given. */
  placeholder: string;
  hint?: string;
}

function OptionalNumber({ label, name, least, placeholder, hint }: NumberProps): JSX.Element {
  const value = openChat.value.settings[name];
  const [wrong, setWrong] = useState<string | null>(null); // what was typed, if it is no such number
  const read = (text: string): void => {
    const number = text.trim() === "" ? null : Number(text);
    const isRight = number === null || (Number.isSafeInteger(number) && number >= least);
    setWrong(isRight ? null : text);
    changeSettings({ [name]: isRight ? number : null } as Partial<Settings>);
  };
  return (
    <TextField
      label={label}
      inputMode="numeric"
      value={wrong ?? (value === null ? "" : String(value))}
      placeholder={placeholder}
      hint={hint}
      error={wrong === null ? null : `Give a whole number, ${least} or more. Until then it is ${placeholder}.`}
      onInput={read}
    />
  );
}

function Thinking(): JSX.Element {
  return (
    <Field
      label="Thinking"
      hint="Of models that can think before they answer."
      control={(wiring) => (
        <select
          {...wiring}
          class="input"
          value={openChat.value.settings.thinking}
          onChange={(event) => changeSettings({ thinking: event.currentTarget.value as Settings["thinking"] })}
        >
          <option value="default">As the model likes</option>
          <option value="on">On</option>
          <option value="off">Off</option>
        </select>
      )}
    />
  );
}
