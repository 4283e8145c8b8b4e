import { countText, timeText } from './output.js';

/** What a bar shows of a step. */
export interface Shown {
  readonly step: number;
  readonly loss: number;
  readonly tokensPerSecond: number;
  readonly secondsLeft: number;
}

/** Shows how a run goes, on standard error: a bar on a terminal, else a line now and then. */
export interface Progress {
  step(shown: Shown): void;
  /** Prints a line without disturbing the bar. */
  note(line: string): void;
  end(): void;
}

/** Seconds between two lines where there is no terminal. */
const LINE_EVERY = 10;

function textOf({ loss, tokensPerSecond, secondsLeft }: Shown) {
  return {
    loss: loss.toFixed(4),
    speed: countText(tokensPerSecond),
    left: timeText(secondsLeft),
  };
}

function lines(total: number): Progress {
  let printed = Number.NEGATIVE_INFINITY;
  const note = (line: string) => process.stderr.write(`${line}\n`);
  return {
    note,
    end() {},
    step(shown) {
      const now = performance.now() / 1000;
      if (now - printed < LINE_EVERY && shown.step !== total) return;
      printed = now;
      const { loss, speed, left } = textOf(shown);
      note(`step ${shown.step}/${total}  loss ${loss}  ${speed} tokens/s  ${left} left`);
    },
  };
}

/** Columns that the bar's text takes at most; the bar has the rest. */
const TEXT_WIDTH = 72;

async function bar(total: number, from: number): Promise<Progress> {
  const { default: cliProgress } = await import('cli-progress');
  const made = new cliProgress.SingleBar({
    format: '{bar} {percentage}%  step {value}/{total}  loss {loss}  {speed} tokens/s  {left} left',
    stream: process.stderr,
    barsize: Math.max(4, Math.min(24, (process.stderr.columns ?? 80) - TEXT_WIDTH)),
    barCompleteChar: '█',
    barIncompleteChar: '░',
    // Ctrl-C is ours: it lets the step end and saves.
    gracefulExit: false,
    linewrap: null,
    forceRedraw: true,
  });
  let at = from;
  let shown = { loss: '…', speed: '…', left: '…' };
  made.start(total, from, shown);
  return {
    step(s) {
      at = s.step;
      shown = textOf(s);
      made.update(at, shown);
    },
    note(line) {
      // Takes the bar's line, and saves the cursor where the bar now begins: it ends there.
      process.stderr.write(`\r\x1b[K${line}\n\x1b7`);
      made.update(at, shown);
    },
    end() {
      made.update(at, shown);
      made.stop();
    },
  };
}

/** Progress over `total` steps, `from` of which are done. */
export async function showProgress(total: number, from: number): Promise<Progress> {
  return process.stderr.isTTY ? bar(total, from) : lines(total);
}
