/** What the present view adds to the bar at the top. */
import { signal } from "@preact/signals";
import type { JSX } from "preact";

/** It is reset when the view changes. */
export const barContent = signal<JSX.Element | null>(null);
