let enabled = true;

/** Whether ops record the graph now. */
export function gradEnabled(): boolean {
  return enabled;
}

/** Runs `fn` without recording: its results are constants. */
export function noGrad<T>(fn: () => T): T {
  return recording(false, fn);
}

/** Runs `fn` with recording, as outside every {@link noGrad}. */
export function withGrad<T>(fn: () => T): T {
  return recording(true, fn);
}

/** Sets whether ops record, and answers whether they did; to be set back in any case. */
export function setRecording(on: boolean): boolean {
  const before = enabled;
  enabled = on;
  return before;
}

function recording<T>(on: boolean, fn: () => T): T {
  const before = setRecording(on);
  try {
    return fn();
  } finally {
    enabled = before;
  }
}
