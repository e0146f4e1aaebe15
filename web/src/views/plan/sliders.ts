/** The sliders of a machine's figures: which there are, their steps, and how a figure reads. */
import { figureText, sizeText } from "../../units.ts";
import { type Asked, type FigureName, FIGURES, type PlanAnswer } from "./answer.ts";

const GIB = 2 ** 30;

export interface SliderKind {
  name: FigureName;
  label: string;
  hint: string;
  /** The option of `understudy plan`. */
  option: string;
  steps: number[];
}

/** The machine that is asked about: the server's own, or one with another card. */
export type MachineKind = "own" | "card";

const SLIDERS: Record<FigureName, SliderKind> = {
  device_memory: {
    name: "device_memory",
    label: "Device memory",
    hint: "Of the whole card.",
    option: "--device-memory",
    steps: [4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192].map((size) => size * GIB),
  },
  ram: {
    name: "ram",
    label: "RAM",
    hint: "For weights, beside the process itself.",
    option: "--ram",
    steps: [1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024].map((size) => size * GIB),
  },
  link_gbps: {
    name: "link_gbps",
    label: "Link",
    hint: "From RAM to the device: 12 is PCIe 3.0 x16, 25 is 4.0, 50 is 5.0.",
    option: "--link-gbps",
    steps: [0.5, 1, 2, 3, 4, 6, 8, 12, 16, 20, 25, 32, 40, 50, 64, 100, 200, 450],
  },
  disk_gbps: {
    name: "disk_gbps",
    label: "Disk",
    hint: "Reading in order: 0.5 is SATA, 3 to 14 is NVMe.",
    option: "--disk-gbps",
    steps: [0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 7, 10, 12, 14, 20, 28],
  },
  device_gbps: {
    name: "device_gbps",
    label: "Memory bandwidth",
    hint: "Of the card's own memory.",
    option: "--device-gbps",
    steps: [100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 900, 1000, 1300, 1800, 2000, 3350, 4800, 8000],
  },
  users: {
    name: "users",
    label: "Users",
    hint: "Of the forecast for several users at once.",
    option: "--users",
    steps: [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256],
  },
};

const USERS = 8; // of the server's own forecast

/** Return the sliders that change something: a machine without a card has no link, unless one is simulated. */
export function slidersFor(kind: MachineKind, answer: PlanAnswer | null): SliderKind[] {
  if (kind === "card") return Object.values(SLIDERS);
  const hasLink = answer !== null && (answer.plan.memory.is_cuda || (answer.plan.tiers["ram"] ?? 0) > 0);
  return [SLIDERS.ram, ...(hasLink ? [SLIDERS.link_gbps] : []), SLIDERS.disk_gbps, SLIDERS.users];
}

/** Return the server's words with the names that the sliders have for fields. */
export function inSliderWords(message: string): string {
  return message.replace(/'([a-z_]+)'/g, (whole, field: string) =>
    Object.hasOwn(SLIDERS, field) ? `“${SLIDERS[field as FigureName].label}”` : whole,
  );
}

/** Return the figures that are sent for a machine. A card needs its size to be one. */
export function figuresFor(kind: MachineKind, asked: Asked): Asked {
  if (kind === "card") return { device_memory: DEFAULT_CARD, ...asked };
  const { device_memory: _size, device_gbps: _speed, ...own } = asked;
  return own;
}

const DEFAULT_CARD = 8 * GIB;

/** Return a figure with its unit. */
export function figureOf(name: FigureName, value: number): string {
  if (isSize(name)) return sizeText(value);
  return name === "users" ? String(value) : `${figureText(value)} GB/s`;
}

/** Return the figure of the machine that an answer is for; null where it has none. */
export function presentFigure(name: FigureName, asked: Asked, answer: PlanAnswer | null): number | null {
  const own = asked[name];
  if (own !== undefined) return own;
  if (name === "users") return answer?.forecast.users_asked ?? USERS;
  return answer?.machine[name] ?? null;
}

/** The bounds that the server has for figures: sizes in bytes, speeds in GB/s, users. */
const BOUNDS: Record<"size" | "speed" | "users", [least: number, most: number]> = {
  size: [2 ** 20, 2 ** 50],
  speed: [1e-3, 1e6],
  users: [1, 1024],
};
const UNITS: Record<string, number> = { "": 1, MiB: 2 ** 20, GiB: GIB, TiB: 2 ** 40 };

/** Return the part of an address that describes a machine: "machine=card&ram=24GiB". */
export function queryOf(kind: MachineKind, asked: Asked): URLSearchParams {
  const query = new URLSearchParams(kind === "own" ? {} : { machine: kind });
  for (const name of FIGURES) {
    const value = asked[name];
    if (value !== undefined) query.set(name, isSize(name) ? sizeOption(value) : String(value));
  }
  return query;
}

/** Return the machine that an address describes. What is no figure, or out of bounds, is left out. */
export function machineFrom(query: URLSearchParams): { kind: MachineKind; asked: Asked } {
  const asked: Asked = {};
  for (const name of FIGURES) {
    const value = readFigure(name, query.get(name) ?? "");
    if (value !== null) asked[name] = value;
  }
  return { kind: query.get("machine") === "card" ? "card" : "own", asked };
}

function readFigure(name: FigureName, text: string): number | null {
  const [, number, unit] = /^(\d{1,16}(?:\.\d{1,9})?)([KMGT]iB)?$/.exec(text) ?? [];
  const factor = UNITS[unit ?? ""];
  if (number === undefined || factor === undefined || (unit !== undefined && !isSize(name))) return null;
  const value = Number(number) * factor;
  const [least, most] = BOUNDS[isSize(name) ? "size" : name === "users" ? "users" : "speed"];
  const isWhole = Number.isInteger(value) || (!isSize(name) && name !== "users");
  return isWhole && value >= least && value <= most ? value : null;
}

function isSize(name: FigureName): boolean {
  return name === "device_memory" || name === "ram";
}

/** Return the step of a slider that is nearest to a figure, by ratio. */
export function stepAt(steps: readonly number[], value: number): number {
  const far = (step: number): number => Math.abs(Math.log(step / Math.max(value, Number.MIN_VALUE)));
  return steps.reduce((best, step, index) => (far(step) < far(steps[best]!) ? index : best), 0);
}

/** Return the command that prints the same plan. */
export function commandOf(model: string, figures: Asked): string {
  const options = Object.values(SLIDERS).flatMap(({ name, option }) => {
    const value = figures[name];
    return value === undefined ? [] : [`${option} ${isSize(name) ? sizeOption(value) : value}`];
  });
  return ["understudy plan", quoted(model), ...options].join(" ");
}

/** Return bytes as the command reads them: "8GiB", without rounding. */
function sizeOption(nbytes: number): string {
  return nbytes % GIB === 0 ? `${nbytes / GIB}GiB` : String(nbytes);
}

function quoted(word: string): string {
  return /^[\w./:@+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
