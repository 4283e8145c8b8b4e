/** One import of a source file. */
export interface Import {
  specifier: string;
  /** Whether it is gone after compiling. */
  typeOnly: boolean;
  line: number;
}

/** The source with its comments blanked out; strings, templates and line numbers stay. */
export function withoutComments(source: string): string {
  // A comment, or what could hold the start of one: a string or a template.
  const pattern =
    /\/\/[^\n]*|\/\*[\s\S]*?\*\/|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\[\s\S]|[^`\\])*`/g;
  return source.replace(pattern, (match) =>
    match.startsWith('/') ? match.replace(/[^\n]/g, ' ') : match,
  );
}

/** Whether the braces of an import or export hold nothing but types. */
function onlyTypes(clause: string): boolean {
  const braces = /^\s*\{([^}]*)\}\s*$/.exec(clause)?.[1];
  if (braces === undefined) return false;
  const names = braces.split(',').map((name) => name.trim());
  const present = names.filter((name) => name !== '');
  return present.length > 0 && present.every((name) => name.startsWith('type '));
}

/** All imports of a TypeScript source: static, re-exported, dynamic, and in types. */
export function scanImports(source: string): Import[] {
  const text = withoutComments(source);
  const found: Import[] = [];
  const add = (index: number, specifier: string, typeOnly: boolean) => {
    found.push({ specifier, typeOnly, line: text.slice(0, index).split('\n').length });
  };
  const statics = /^[ \t]*(import|export)\b([^'"`;=()]*?)\bfrom\s*(['"])([^'"\n]+)\3/gm;
  for (const match of text.matchAll(statics)) {
    const clause = match[2]!;
    add(match.index, match[4]!, /^\s*type\s+[{*\w]/.test(clause) || onlyTypes(clause));
  }
  for (const match of text.matchAll(/^[ \t]*import\s*(['"])([^'"\n]+)\1/gm)) {
    add(match.index, match[2]!, false);
  }
  for (const match of text.matchAll(/\bimport\s*\(\s*(['"])([^'"\n]+)\1\s*[,)]\s*(\.)?/g)) {
    // `import('x').Name` is a type; `(await import('x')).name` is not.
    add(
      match.index,
      match[2]!,
      match[3] !== undefined &&
        !/^\.(then|catch|finally)\b/.test(text.slice(match.index + match[0].length - 1)),
    );
  }
  return found.sort((a, b) => a.line - b.line);
}
