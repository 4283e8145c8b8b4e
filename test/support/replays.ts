import { Recording } from '../../src/tensor/recording.js';

/** Counts the recordings that are replayed until it is disposed of. */
export class ReplayCounter {
  replays = 0;
  readonly #replay = Recording.prototype.replay;

  constructor() {
    const counted = (done: boolean) => {
      if (done) this.replays++;
      return done;
    };
    const replay = this.#replay;
    Recording.prototype.replay = function (...args) {
      return counted(replay.apply(this, args));
    };
  }

  [Symbol.dispose](): void {
    Recording.prototype.replay = this.#replay;
  }
}
