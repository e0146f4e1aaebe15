/** The sliders of the machine's figures. */
import type { JSX } from "preact";

import { Button } from "../../ui/button.tsx";
import { Slider } from "../../ui/fields.tsx";
import { answer, asked, figures, machineKind, setFigure } from "./state.ts";
import { figureOf, presentFigure, type SliderKind, slidersFor, stepAt } from "./sliders.ts";

export function Sliders(): JSX.Element {
  const kinds = slidersFor(machineKind.value, answer.value);
  const isChanged = kinds.some(({ name }) => asked.value[name] !== undefined);
  return (
    <section class="plan-sliders" aria-label="Figures of the machine">
      {kinds.map((kind) => (
        <FigureSlider key={kind.name} kind={kind} />
      ))}
      {isChanged && (
        <Button kind="quiet" class="reset-all" onClick={() => (asked.value = {})}>
          Reset all
        </Button>
      )}
    </section>
  );
}

function FigureSlider({ kind: { name, label, hint, steps } }: { kind: SliderKind }): JSX.Element {
  const value = presentFigure(name, figures.value, answer.value);
  const text = value === null ? "not known" : figureOf(name, value);
  return (
    <Slider
      label={label}
      hint={hint}
      min={0}
      max={steps.length - 1}
      step={1}
      value={value === null ? 0 : stepAt(steps, value)}
      format={() => text}
      onInput={(step) => setFigure(name, steps[step]!)}
    />
  );
}
