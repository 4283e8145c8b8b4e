let enabled = true;

/** Whether ops record the graph now. */
export function gradEnabled(): boolean {
  return enabled;
}

/** Runs `fn` without recording: its results are constants. */
export function noGrad<T>(fn: () => T): T {
  const before = enabled;
  enabled = false;
  try {
    return fn();
  } finally {
    enabled = before;
  }
}
