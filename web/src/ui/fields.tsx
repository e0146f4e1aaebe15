/** Fields of forms, each with its label, and with an error or a hint that belongs to it. */
import type { ComponentChildren, JSX } from "preact";
import { useId } from "preact/hooks";

interface FieldProps {
  label: string;
  hint?: ComponentChildren;
  error?: string | null;
}

interface Wiring {
  id: string;
  "aria-describedby"?: string;
  "aria-invalid"?: boolean;
}

/** A label above `control`, which gets the attributes that connect it with hint and error. */
export function Field({
  label,
  hint,
  error,
  control,
}: FieldProps & { control: (wiring: Wiring) => JSX.Element }): JSX.Element {
  const id = useId();
  const note = error ?? hint;
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {control({
        id,
        ...(note ? { "aria-describedby": `${id}-note` } : {}),
        ...(error ? { "aria-invalid": true } : {}),
      })}
      {note && (
        <p id={`${id}-note`} class={error ? "field-error" : "field-hint"}>
          {note}
        </p>
      )}
    </div>
  );
}

interface TextProps extends FieldProps {
  value: string;
  onInput: (value: string) => void;
  placeholder?: string;
}

export function TextField({
  value,
  onInput,
  placeholder,
  isSecret = false,
  inputMode = "text",
  ...field
}: TextProps & { isSecret?: boolean; inputMode?: "text" | "numeric" | "decimal" }): JSX.Element {
  const kind = isSecret ? { type: "password" as const } : { type: "text" as const, inputMode };
  return (
    <Field
      {...field}
      control={(wiring) => (
        <input
          {...wiring}
          {...kind}
          class="input"
          value={value}
          placeholder={placeholder}
          autocomplete="off"
          spellcheck={false}
          onInput={(event) => onInput(event.currentTarget.value)}
        />
      )}
    />
  );
}

export function TextArea({
  value,
  onInput,
  placeholder,
  rows = 3,
  isCode = false,
  ...field
}: TextProps & { rows?: number; isCode?: boolean }): JSX.Element {
  return (
    <Field
      {...field}
      control={(wiring) => (
        <textarea
          {...wiring}
          class={isCode ? "input code" : "input"}
          rows={rows}
          value={value}
          placeholder={placeholder}
          spellcheck={!isCode}
          onInput={(event) => onInput(event.currentTarget.value)}
        />
      )}
    />
  );
}

interface SliderProps extends FieldProps {
  value: number;
  min: number;
  max: number;
  step: number;
  /** Returns the value as text with its unit, which is shown and read. */
  format?: (value: number) => string;
  onInput: (value: number) => void;
}

export function Slider({ value, min, max, step, format = String, onInput, ...field }: SliderProps): JSX.Element {
  return (
    <Field
      {...field}
      control={(wiring) => (
        <span class="slider">
          <input
            {...wiring}
            type="range"
            min={min}
            max={max}
            step={step}
            value={value}
            aria-valuetext={format(value)}
            onInput={(event) => onInput(event.currentTarget.valueAsNumber)}
          />
          <output for={wiring.id}>{format(value)}</output>
        </span>
      )}
    />
  );
}
