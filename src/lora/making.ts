import type { Module } from '../nn/index.js';
import { failure, nearest } from '../tensor/errors.js';
import type { Shape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Branch, Variant } from './branch.js';
import { endPattern, type FullLoraConfig, type LoraConfig } from './config.js';
import type { Host } from './host.js';
import { checkRanks } from './ranks.js';
import type { Site } from './site.js';
import { chooseLayers, type Target } from './targets.js';
import { TOKEN_ROWS, TokenHead, type TokenRows } from './tokens.js';
import { variantOn } from './variants/index.js';

/** How the branches of a new adapter are made, and where the parameters it holds whole come from. */
export interface Making {
  branch(variant: Variant, site: Site, config: FullLoraConfig): Branch;
  tokens(site: Site, ids: readonly number[]): TokenRows;
  /** The copies of what it holds whole, by PEFT's names; default the base's. */
  readonly saved?: (key: string) => Tensor;
  /** Whether every name and pattern must match something. */
  readonly strict: boolean;
}

/** What a model is for, in PEFT's words; null for one that does not say. */
export function peftTask(model: Module): string | null {
  return (model as { peftTask?: string }).peftTask ?? null;
}

/** PEFT trains the head of a classifier along, by either of two names. */
export function defaultsFor(model: Module): Partial<LoraConfig> {
  return peftTask(model) === 'SEQ_CLS' ? { modulesToSave: ['classifier', 'score'] } : {};
}

/** Throws if an alpha of 0 would keep layers from learning; a file may have one. */
function checkAlphas({ alpha, alphaPattern }: FullLoraConfig): void {
  if (alpha === 0) throw failure('lora alpha', 'a number other than 0', '0');
  for (const [pattern, value] of Object.entries(alphaPattern)) {
    if (value !== 0) continue;
    const expected = `a number other than 0 for "${pattern}"`;
    throw failure('lora alphaPattern', expected, '0', 'excludeModules leaves layers out');
  }
}

/** Throws if biases are asked for where there are none. */
function checkBiases(host: Host, { bias }: FullLoraConfig, paths: ReadonlySet<string>): void {
  if (bias === 'none') return;
  const biases = (which: 'all' | 'lora_only') =>
    host.saved.parameters({ modulesToSave: [], bias: which }, paths).size;
  if (biases(bias) > 0) return;
  const received = `none on ${[...paths][0]}${paths.size > 1 ? ' and the others' : ''}`;
  if (bias === 'all') throw failure('lora bias', 'a model with biases', 'none');
  throw failure(
    'lora bias',
    'layers with biases',
    received,
    ...(biases('all') > 0 ? ['bias "all" takes those of others'] : []),
  );
}

/** Puts a new adapter into a model. @throws when something does not fit; nothing is then left */
export function attach(host: Host, name: string, config: FullLoraConfig, making: Making): void {
  const targets = chooseLayers(host.model, config, making.strict);
  if (making.strict) {
    checkPatterns(config, targets);
    checkAlphas(config);
    checkBiases(host, config, new Set(targets.map((t) => t.path)));
    checkRanks(
      targets.map((t) => host.site(t)),
      config,
    );
  }
  const made: [Target, Branch][] = [];
  try {
    for (const t of targets) {
      const site = host.site(t);
      made.push([t, making.branch(variantOn(site, config), site, config)]);
    }
    for (const [t, ids] of host.tokenTargets(config)) {
      checkFree(targets, t, 'an embedding without LoRA');
      const rows = making.tokens(host.site(t), ids);
      made.push([t, rows]);
      const head = host.headOf(t);
      if (!head) continue;
      checkFree(targets, head, 'a tied head without LoRA');
      made.push([head, new TokenHead(head.path, rows)]);
    }
    const paths = new Set(targets.map((t) => t.path));
    host.saved.add(name, config, paths, making.saved);
  } catch (error) {
    for (const [, branch] of made) branch.dispose();
    throw error;
  }
  for (const [target, branch] of made) host.put(name, target, branch);
}

/** Throws if a layer whose rows are trained for tokens has A and B, too. */
function checkFree(targets: readonly Target[], { path }: Target, expected: string): void {
  if (targets.some((t) => t.path === path)) throw failure('lora trainableTokens', expected, path);
}

/** Shapes of all tensors of an adapter of these settings, by PEFT's names without their prefix. */
export function expectedShapes(host: Host, config: FullLoraConfig): Map<string, Shape> {
  const out = new Map<string, Shape>();
  const paths = new Set<string>();
  for (const target of chooseLayers(host.model, config, false)) {
    const site = host.site(target);
    paths.add(site.path);
    const variant = variantOn(site, config);
    for (const [end, shape] of (variant.fileShapes ?? variant.shapes)(site, config)) {
      out.set(`${site.path}.${end}`, shape);
    }
  }
  for (const [target, ids] of host.tokenTargets(config)) {
    const { path, outFeatures } = host.site(target);
    out.set(`${path}.${TOKEN_ROWS}`, [ids.length, outFeatures]);
  }
  for (const { key, base } of host.saved.parameters(config, paths).values()) {
    out.set(key, base.shape);
  }
  return out;
}

/** Throws if a name that a user asks to save whole is no module's; PEFT's own defaults may be none. */
export function checkSaved(host: Host, asked: readonly string[]): void {
  for (const name of asked) {
    const choice = { modulesToSave: [name], bias: 'none' } as const;
    if (host.saved.parameters(choice, new Set()).size > 0) continue;
    const paths = [...host.model.namedModules()].map((m) => m.path).filter((p) => p !== '');
    // As a user names them: by the last part, unless the name has several.
    const parts = paths.map((p) => p.replace(/^.*\./, '')).filter((p) => !/^\d+$/.test(p));
    const near = nearest(name, name.includes('.') ? paths : parts, 3).join(', ');
    const expected = 'names of modules of the model';
    throw failure('lora modulesToSave', expected, `"${name}"`, `Nearest: ${near}`);
  }
}

/** Throws if a pattern of ranks or alphas is for none of an adapter's layers. */
function checkPatterns(config: FullLoraConfig, targets: readonly Target[]): void {
  for (const setting of ['rankPattern', 'alphaPattern', 'enableLora'] as const) {
    let left = targets;
    for (const pattern of Object.keys(config[setting])) {
      const takes = (t: Target) => endPattern(pattern).test(t.path);
      const before = left;
      // The first pattern that matches a layer counts.
      left = left.filter((t) => !takes(t));
      if (left.length < before.length) continue;
      if (targets.some(takes)) {
        throw failure(
          `lora ${setting}`,
          'patterns of layers of the adapter, narrower ones first',
          `"${pattern}", whose layers are all matched by patterns before it`,
        );
      }
      const near = nearest(
        pattern,
        targets.flatMap((t) => [t.name, t.path]),
      );
      const received = `"${pattern}", which matches none`;
      const expected = 'patterns of layers of the adapter';
      throw failure(`lora ${setting}`, expected, received, `Nearest: ${near.join(', ')}`);
    }
  }
}
