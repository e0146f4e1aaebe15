/** A plan's memory as bars of parts, and as sentences that say the same. */
import { countText, several, sizeText } from "../../units.ts";
import type { PlanAnswer, PlanPlaces } from "./answer.ts";

/** What a part is, which decides its colour. */
export type PartKind = "weights" | "ring" | "draft" | "kv" | "states" | "working" | "runtime" | "reserved";

export interface Part {
  kind: PartKind;
  name: string;
  nbytes: number;
  note: string;
}

export interface Bar {
  name: string;
  parts: Part[];
  /** Bytes of the whole memory; null where the plan knows no limit. */
  capacity: number | null;
  /** What is not a part of the bar. */
  remark: string | null;
}

const PAGE = 64; // tokens of a page of the KV cache

/** Return the bars of a plan: the device, RAM and the disk, or where both are the same memory, one. */
export function barsOf({ plan, draft, machine }: PlanAnswer): Bar[] {
  const { memory } = plan;
  const host = memory.ram + memory.host_runtime + memory.code;
  const embedding = plan.embedding_bytes
    ? `${sizeText(plan.embedding_bytes)} of the embedding stay in the file, and are cached in free RAM.`
    : null;
  const bars: Bar[] = [];
  if (memory.is_cuda) {
    const usable = memory.device + memory.device_runtime;
    const capacity = Math.max(usable, machine.device_memory);
    const parts = [
      ...deviceParts(plan, draft),
      part("reserved", "driver", capacity - usable, "what the driver keeps for itself"),
    ];
    bars.push({ name: "Device memory", parts: filled(parts), capacity, remark: null });
    bars.push({ name: "RAM", parts: filled(hostParts(plan)), capacity: host, remark: embedding });
  } else {
    const parts = filled([...deviceParts(plan, draft), ...hostParts(plan)]);
    bars.push({ name: "RAM", parts, capacity: host, remark: embedding });
  }
  if (plan.disk_unit_bytes) {
    const parts = [weights(plan, "disk", "weights on disk", plan.disk_unit_bytes)];
    bars.push({ name: "Disk", parts, capacity: null, remark: "They are read again in each pass." });
  }
  return bars;
}

function deviceParts(plan: PlanPlaces, draft: string): Part[] {
  const away = (plan.tiers["ram"] ?? 0) + (plan.tiers["disk"] ?? 0);
  const ring = `${several(plan.ring_slots, "slot")}, through which ${several(away, "unit")} pass`;
  const kv = `${countText(plan.num_pages * PAGE)} tokens, ${several(plan.max_sequences, "sequence")} at once`;
  return [
    weights(plan, "resident", "resident weights", plan.resident_bytes),
    part("ring", "ring", plan.ring_bytes, away ? ring : ""),
    part("draft", "drafts", plan.draft_bytes, draft),
    part("kv", "KV cache", plan.kv_bytes, kv),
    part("states", "recurrent states", plan.state_bytes, ""),
    part("working", "activations", plan.activation_bytes, `passes of up to ${countText(plan.max_rows)} rows`),
    part("working", "other", plan.other_bytes, "norms, expanded weights, graphs, workspaces"),
    part("runtime", "CUDA", plan.memory.device_runtime, "used by CUDA itself"),
  ];
}

function hostParts(plan: PlanPlaces): Part[] {
  return [
    weights(plan, "ram", "weights in RAM", plan.ram_unit_bytes),
    part("ring", "staging", plan.staging_bytes, "between disk and device"),
    part("kv", "idle KV cache", plan.host_kv_bytes, `${countText(plan.host_pages * PAGE)} tokens`),
    part("working", "while loading", plan.making_bytes, "to make drafts or to code weights"),
    part("runtime", "compiled code", plan.memory.code, "for the CPU, when it is first needed"),
    part("runtime", "process", plan.memory.host_runtime, "the process without weights"),
  ];
}

function weights(plan: PlanPlaces, tier: string, name: string, nbytes: number): Part {
  const all = Object.values(plan.tiers).reduce((sum, count) => sum + count, 0);
  return part("weights", name, nbytes, `${countText(plan.tiers[tier] ?? 0)} of ${several(all, "unit")}`);
}

function part(kind: PartKind, name: string, nbytes: number, note: string): Part {
  return { kind, name, nbytes, note };
}

function filled(parts: Part[]): Part[] {
  return parts.filter(({ nbytes }) => nbytes > 0);
}

/** Return the bytes that the parts of a bar take together. */
export function usedBytes({ parts }: Bar): number {
  return sum(parts.map(({ nbytes }) => nbytes));
}

/** A part's place in the drawing, in percent of its width. */
export interface Placed {
  part: Part;
  start: number;
  width: number;
}

const LEAST_SHARE = 0.1; // of its memory that a bar uses: below it, the bar shows what is used alone
const LEAST_WIDTH = 0.75; // percent: a narrower part could not be seen

/** Return whether a bar shows only what is used, because that is a small part of the memory. */
export function isEnlarged(bar: Bar): boolean {
  return bar.capacity !== null && usedBytes(bar) < LEAST_SHARE * bar.capacity;
}

/**
 * Return where each part is drawn. Parts that are more than the capacity fill the whole width; no part
 * is so narrow that it could not be seen.
 */
export function placed(bar: Bar): Placed[] {
  const used = usedBytes(bar);
  const whole = Math.max(used, isEnlarged(bar) ? 0 : (bar.capacity ?? 0), 1);
  const shares = bar.parts.map(({ nbytes }) => (100 * nbytes) / whole);
  const widened = shares.map((share) => Math.max(share, LEAST_WIDTH));
  const excess = sum(widened) - (100 * used) / whole;
  const wide = sum(widened.filter((width) => width > LEAST_WIDTH).map((width) => width - LEAST_WIDTH));
  const kept = wide > 0 ? Math.max(0, 1 - excess / wide) : 1; // of what parts are wider than the least width
  let start = 0;
  return bar.parts.map((found, index) => {
    const width = LEAST_WIDTH + (widened[index]! - LEAST_WIDTH) * kept;
    const at = { part: found, start, width };
    start += width;
    return at;
  });
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

/** Return how full a bar is: "6.1 GiB of 8 GiB". */
export function fillText(bar: Bar): string {
  const used = sizeText(usedBytes(bar));
  return bar.capacity === null ? used : `${used} of ${sizeText(bar.capacity)}`;
}

/** Return what a bar shows, as a sentence. */
export function barSentence(bar: Bar): string {
  const parts = bar.parts.map(({ name, nbytes }) => `${name} ${sizeText(nbytes)}`);
  const free = bar.capacity === null ? 0 : bar.capacity - usedBytes(bar);
  if (free > 0) parts.push(`free ${sizeText(free)}`);
  return `${bar.name}: ${fillText(bar)}. ${parts.join(", ")}.`;
}
