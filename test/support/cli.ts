/** Runs the command line for tests: in this process, or in one of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { runCli } from '../../src/cli/program.js';

/** What a command came to. */
export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command line in this process. */
export async function inside(...argv: string[]): Promise<Ended> {
  const out = { stdout: '', stderr: '' };
  const streams = ['stdout', 'stderr'] as const;
  const writes = streams.map((name) => process[name].write);
  const isTTY = process.stderr.isTTY;
  for (const name of streams) {
    process[name].write = ((text: string | Uint8Array) => {
      out[name] += typeof text === 'string' ? text : Buffer.from(text).toString();
      return true;
    }) as typeof process.stdout.write;
  }
  process.stderr.isTTY = false;
  try {
    const code = await runCli(argv);
    return { code, ...out };
  } finally {
    streams.forEach((name, i) => {
      process[name].write = writes[i] as typeof process.stdout.write;
    });
    process.stderr.isTTY = isTTY;
  }
}

/**
 * Runs a command line in a process of its own.
 * @param onLine is given every line of standard output, and the process, to send it signals
 */
export function outside(
  argv: readonly string[],
  onLine: (line: string, child: ChildProcess) => void = () => {},
  input?: string,
): Promise<Ended> {
  return new Promise((settle, fail) => {
    const tsx = import.meta.resolve('tsx');
    const child = spawn(process.execPath, ['--import', tsx, 'src/cli/main.ts', ...argv], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdin.end(input ?? '');
    createInterface(child.stdout).on('line', (line) => {
      stdout += `${line}\n`;
      onLine(line, child);
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.on('error', fail);
    child.on('close', (code) => settle({ code, stdout, stderr }));
  });
}

/** The lines of `--json`; throws on one that is not an object of a type. */
export function events(text: string): Record<string, unknown>[] {
  return text
    .trimEnd()
    .split('\n')
    .map((line) => {
      const event = JSON.parse(line) as Record<string, unknown>;
      if (typeof event.type !== 'string') throw new Error(`no type in ${line}`);
      return event;
    });
}
