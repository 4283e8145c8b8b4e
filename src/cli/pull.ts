import type { Command } from 'commander';
import {
  type CommonOptions,
  command,
  commonOptions,
  note,
  printJson,
  Stopped,
  say,
  stopSignal,
  UsageError,
} from './output.js';

interface PullFlags extends CommonOptions {
  readonly revision?: string;
}

const EXAMPLES = [
  'lowrank pull HuggingFaceTB/SmolLM2-135M',
  'lowrank pull org/name --revision v1.0 --json',
  'lowrank generate --model "$(lowrank pull org/name)" --prompt "Once upon"',
  'HF_TOKEN=hf_… lowrank pull org/private-name',
];

const SUMMARY = 'Download a model or adapter of the Hugging Face Hub, and print its directory.';

const DETAILS =
  'Into the cache that Python uses too (HF_HUB_CACHE, HF_HOME); what is there is not fetched ' +
  'again, and a download that broke off goes on. Only settings, tokenizer and safetensors are ' +
  'fetched. HF_TOKEN (or the login of the hf command) opens private and gated repositories, ' +
  'HF_ENDPOINT names another Hub, HF_HUB_OFFLINE=1 forbids the network. Other commands take ' +
  'org/name or org/name@revision where they take a directory, and download what is not there.';

/** `lowrank pull`. */
export function pullCommand(): Command {
  const c = command('pull', SUMMARY, DETAILS, EXAMPLES)
    .argument('<id>', 'org/name, or org/name@revision')
    .option('--revision <name>', 'a branch, a tag or a commit (default: main)');
  return commonOptions(c).action(runPull);
}

/** Milliseconds between two lines of progress of a file with --json. */
const JSON_EVERY = 1000;

async function runPull(id: string, flags: PullFlags): Promise<void> {
  const { revision, json } = flags;
  if (revision !== undefined && id.includes('@')) {
    throw new UsageError(`a revision is given twice: ${id} and --revision ${revision}`);
  }
  const [{ pullModel }, { downloadView }] = await Promise.all([
    import('../io/hub.js'),
    import('./download-view.js'),
  ]);
  const view = json ? undefined : await downloadView();
  const signal = stopSignal(() => view?.end());
  let received = 0;
  let printed = 0;
  let path = '';
  try {
    const done = await pullModel(revision === undefined ? id : `${id}@${revision}`, {
      signal,
      onEvent: (event) => {
        view?.show(event);
        if (!json) return;
        if (event.type !== 'progress') {
          printJson(event);
          return;
        }
        received += event.received;
        if (event.path === path && performance.now() - printed < JSON_EVERY) return;
        path = event.path;
        printed = performance.now();
        printJson({ type: 'progress', path: event.path, received });
      },
    });
    view?.end();
    if (json) printJson({ type: 'done', ...done });
    else {
      if (done.received === 0) note('Everything is in the cache already');
      say(done.dir);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
    view?.end();
    note('Stopped: what came is kept, and the same command goes on from there');
    throw new Stopped();
  } finally {
    view?.end();
  }
}
