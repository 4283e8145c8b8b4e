import { type FinetuneEvent, finetune } from '../../src/train/finetune.js';

type Options = Parameters<typeof finetune>[0];

/** Every event of a run. */
export async function all(options: Options): Promise<FinetuneEvent[]> {
  const seen: FinetuneEvent[] = [];
  for await (const event of finetune(options)) seen.push(event);
  return seen;
}

/** The message with which a run fails. */
export async function failure(options: Options): Promise<string> {
  try {
    await all(options);
  } catch (error) {
    return (error as Error).message;
  }
  return 'no error';
}
