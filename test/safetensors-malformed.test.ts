import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { SafetensorsFile } from '../src/io/safetensors.js';

const test = suite('malformed safetensors');
const dir = mkdtempSync(join(tmpdir(), 'lowrank-malformed-'));
test.after(() => rmSync(dir, { recursive: true, force: true }));

/** A file from its header text (or bytes) and the size of its data. */
function fileOf(header: string | Uint8Array, dataBytes: number, length?: bigint): Uint8Array {
  const json = typeof header === 'string' ? Buffer.from(header) : header;
  const out = new Uint8Array(8 + json.length + dataBytes);
  new DataView(out.buffer).setBigUint64(0, length ?? BigInt(json.length), true);
  out.set(json, 8);
  return out;
}

/** A header with one tensor `w` of these fields. */
const one = (fields: string) => `{"w":{${fields}}}`;
const good = '"dtype":"F32","shape":[2],"data_offsets":[0,8]';
const withShape = (shape: string) => one(`"dtype":"F32","shape":${shape},"data_offsets":[0,8]`);
const withOffsets = (offsets: string) => one(`"dtype":"F32","shape":[2],"data_offsets":${offsets}`);
const withDType = (dtype: string) => one(`"dtype":${dtype},"shape":[2],"data_offsets":[0,8]`);
const two = (a: string, b: string) =>
  `{"a":{"dtype":"U8","shape":[4],"data_offsets":${a}},"b":{"dtype":"U8","shape":[4],"data_offsets":${b}}}`;

const bytes = (...parts: (string | number[])[]) =>
  Buffer.concat(parts.map((p) => Buffer.from(p as string)));

type Case = [name: string, file: Uint8Array, message: RegExp];

const whole: Case[] = [
  ['empty file', new Uint8Array(0), /at least the 8 bytes of the header length, received 0 bytes/],
  ['seven bytes', new Uint8Array(7), /at least the 8 bytes of the header length, received 7/],
  ['no header', fileOf('', 0), /a header that begins with "\{", received an empty header/],
  ['header length past the file', fileOf('{}', 0, 3n), /header that ends within the file's 10 byt/],
  ['header length far past it', fileOf('{}', 0, 99_999_999n), /ends within the file's 10 bytes/],
  [
    'header over 100 MB',
    fileOf('{}', 0, 100_000_001n),
    /at most 100000000 bytes, received 100000001/,
  ],
  ['header length 2^64 - 1', fileOf('{}', 0, 2n ** 64n - 1n), /received 18446744073709551615/],
  ['header length 2^63', fileOf('{}', 0, 2n ** 63n), /received 9223372036854775808/],
  ['git-lfs pointer', Buffer.from('version https://git-lfs.github.com/spec/v1\n'), /git lfs pull/],
  ['zip of PyTorch', bytes('PK\x03\x04', [0, 0, 0, 0, 0, 9, 9]), /pickle file of PyTorch: convert/],
  ['GGUF', bytes('GGUF', [3, 0, 0, 0, 1, 2]), /GGUF file/],
  ['web page', Buffer.from('<!DOCTYPE html><html>'), /looks like a web page/],
];

const text: Case[] = [
  ['byte order mark', fileOf('\uFEFF{}', 0), /begins with "\{", received a byte order mark/],
  ['leading space', fileOf(' {}', 0), /begins with "\{", received byte 0x20/],
  ['an array', fileOf('[]', 0), /begins with "\{", received byte 0x5b/],
  ['null', fileOf('null', 0), /begins with "\{", received byte 0x6e/],
  ['bad UTF-8 in a name', fileOf(bytes('{"', [0xff, 0xfe], '":{}}'), 0), /header in UTF-8/],
  ['overlong UTF-8', fileOf(bytes('{"', [0xc0, 0xaf], '":{}}'), 0), /header in UTF-8/],
  ['surrogate in UTF-8', fileOf(bytes('{"', [0xed, 0xa0, 0x80], '":{}}'), 0), /header in UTF-8/],
  ['cut UTF-8 at the end', fileOf(bytes('{}', [0xe2, 0x82]), 0), /header in UTF-8/],
  ['unclosed object', fileOf('{', 0), /tensor name, received the end of the header/],
  ['unclosed string', fileOf('{"w', 0), /closing quote, received the end of the header/],
  ['unclosed tensor', fileOf(`{"w":{${good}`, 8), /"," or "\}" in a tensor, received the end/],
  ['trailing text', fileOf('{} x', 0), /only spaces after the header object, received x/],
  ['trailing object', fileOf('{}{}', 0), /only spaces after the header object, received an object/],
  ['NUL padding', fileOf('{}\0\0', 0), /only spaces after the header object, received "\\u0000"/],
  ['no-break space padding', fileOf('{}\u00a0', 0), /only spaces after the header object/],
  ['trailing comma', fileOf(`{"w":{${good}},}`, 8), /tensor name, received "\}"/],
  ['missing colon', fileOf('{"w"{}}', 0), /":" after "w", received an object/],
  ['unquoted name', fileOf(`{w:{${good}}}`, 8), /tensor name, received w/],
  ['single quotes', fileOf(`{'w':{${good}}}`, 8), /tensor name, received "'"/],
  ['comment', fileOf(`{/**/"w":{${good}}}`, 8), /tensor name, received "\/"/],
  [
    'raw newline in a name',
    fileOf(`{"w\n":{${good}}}`, 8),
    /raw control characters, received U\+000A/,
  ],
  ['bad escape', fileOf(`{"\\x41":{${good}}}`, 8), /valid escapes/],
  ['short unicode escape', fileOf(`{"\\u12":{${good}}}`, 8), /valid escapes/],
  ['lone high surrogate', fileOf(`{"\\ud800":{${good}}}`, 8), /surrogates come in pairs/],
  ['lone low surrogate', fileOf(`{"\\udc00":{${good}}}`, 8), /surrogates come in pairs/],
  ['two high surrogates', fileOf(`{"\\ud800\\ud800":{${good}}}`, 8), /surrogates come in pairs/],
];

const names: Case[] = [
  [
    'a name twice',
    fileOf(`{"w":{${good}},"w":{${good}}}`, 8),
    /each tensor name once, received "w" twi/,
  ],
  ['a name twice by escape', fileOf(`{"w":{${good}},"\\u0077":{${good}}}`, 8), /"w" twice/],
  ['a slash twice by escape', fileOf(`{"a/b":{${good}},"a\\/b":{${good}}}`, 8), /"a\/b" twice/],
  [
    '__proto__ twice',
    fileOf(`{"__proto__":{${good}},"__proto__":{${good}}}`, 8),
    /"__proto__" twice/,
  ],
  ['metadata twice', fileOf('{"__metadata__":{},"__metadata__":{}}', 0), /"__metadata__" twice/],
  ['metadata twice by escape', fileOf('{"__metadata__":{},"\\u005f_metadata__":{}}', 0), /twice/],
  [
    'metadata name twice',
    fileOf('{"__metadata__":{"a":"1","\\u0061":"2"}}', 0),
    /metadata name once, received "a"/,
  ],
  [
    'number in metadata',
    fileOf('{"__metadata__":{"a":1}}', 0),
    /value of "a" to be a string, received 1/,
  ],
  [
    'null in metadata',
    fileOf('{"__metadata__":{"a":null}}', 0),
    /value of "a" to be a string, received null/,
  ],
  [
    'object in metadata',
    fileOf('{"__metadata__":{"a":{}}}', 0),
    /value of "a" to be a string, received an ob/,
  ],
  [
    'metadata an array',
    fileOf('{"__metadata__":[]}', 0),
    /__metadata__ to be an object, received an arr/,
  ],
  [
    'metadata null',
    fileOf('{"__metadata__":null}', 0),
    /__metadata__ to be an object, received null/,
  ],
  [
    'metadata a string',
    fileOf('{"__metadata__":"pt"}', 0),
    /__metadata__ to be an object, received a str/,
  ],
];

const fields: Case[] = [
  [
    'tensor null',
    fileOf('{"w":null}', 0),
    /tensor "w"\] expected a tensor to be an object, received null/,
  ],
  ['tensor an array', fileOf('{"w":[]}', 0), /a tensor to be an object, received an array/],
  ['no dtype', fileOf(one('"shape":[2],"data_offsets":[0,8]'), 8), /received no dtype$/],
  ['no shape', fileOf(one('"dtype":"F32","data_offsets":[0,8]'), 8), /received no shape$/],
  ['no offsets', fileOf(one('"dtype":"F32","shape":[2]'), 8), /received no data_offsets$/],
  ['no field at all', fileOf(one(''), 0), /received no dtype, no shape, no data_offsets$/],
  [
    'unknown field',
    fileOf(one(`${good},"strides":[1]`), 8),
    /data_offsets only, received "strides"/,
  ],
  ['field in capitals', fileOf(one(`${good},"DTYPE":"F32"`), 8), /only, received "DTYPE"/],
  [
    'field twice',
    fileOf(one(`${good},"shape":[2]`), 8),
    /each field of a tensor once, received "shape"/,
  ],
  ['field twice by escape', fileOf(one(`${good},"sh\\u0061pe":[2]`), 8), /received "shape" twice/],
  ['dtype a number', fileOf(withDType('32'), 8), /dtype to be a string, received 32/],
  ['dtype null', fileOf(withDType('null'), 8), /dtype to be a string, received null/],
  [
    'dtype in small letters',
    fileOf(withDType('"f32"'), 8),
    /dtype to be one of BOOL, .*received "f32"/,
  ],
  ['dtype of a prototype', fileOf(withDType('"toString"'), 8), /dtype to be one of .*"toString"/],
  ['dtype unknown', fileOf(withDType('"F128"'), 8), /dtype to be one of .*received "F128"/],
];

const numbers: Case[] = [
  ['shape null', fileOf(withShape('null'), 8), /shape to be an array, received null/],
  ['shape a number', fileOf(withShape('2'), 8), /shape to be an array, received 2/],
  ['shape an object', fileOf(withShape('{}'), 8), /shape to be an array, received an object/],
  ['negative dim', fileOf(withShape('[-2]'), 8), /of 0 or more, received -2/],
  ['minus zero', fileOf(withShape('[-0]'), 8), /of 0 or more, received -0/],
  ['fraction', fileOf(withShape('[2.0]'), 8), /without fraction or exponent, received 2\.0/],
  ['exponent', fileOf(withShape('[2e0]'), 8), /without fraction or exponent, received 2e0/],
  ['leading zero', fileOf(withShape('[02]'), 8), /without leading zeros, received 02/],
  ['plus sign', fileOf(withShape('[+2]'), 8), /to be a whole number, received \+2/],
  ['hexadecimal', fileOf(withShape('[0x2]'), 8), /"," or "\]" in shape, received x2/],
  ['string dim', fileOf(withShape('["2"]'), 8), /to be a whole number, received a string/],
  ['true as dim', fileOf(withShape('[true]'), 8), /to be a whole number, received true/],
  ['NaN as dim', fileOf(withShape('[NaN]'), 8), /to be a whole number, received NaN/],
  [
    'dim past 2^53',
    fileOf(withShape('[9007199254740993]'), 8),
    /at most 2\^53 - 1, received 90071992547409/,
  ],
  [
    'dim past 2^64',
    fileOf(withShape('[18446744073709551618]'), 8),
    /at most 2\^53 - 1, received 1844674/,
  ],
  [
    'product past 2^64',
    fileOf(withShape('[4294967296,4294967296,2]'), 8),
    /whole bytes of at most 2\^53/,
  ],
  [
    'product that wraps to 2',
    fileOf(withShape('[9007199254740991,9007199254740991]'), 8),
    /whole bytes/,
  ],
  [
    'comma at the end of shape',
    fileOf(withShape('[2,]'), 8),
    /to be a whole number, received "\]"/,
  ],
  ['two numbers without comma', fileOf(withShape('[1 2]'), 8), /"," or "\]" in shape, received 2/],
  ['nested shape', fileOf(withShape('[[2]]'), 8), /to be a whole number, received an array/],
  [
    'half bytes',
    fileOf(one('"dtype":"F4","shape":[3],"data_offsets":[0,2]'), 2),
    /size in whole bytes/,
  ],
  ['one offset', fileOf(withOffsets('[8]'), 8), /data_offsets of two numbers, received 1/],
  ['three offsets', fileOf(withOffsets('[0,8,8]'), 8), /data_offsets of two numbers, received 3/],
  ['no offset', fileOf(withOffsets('[]'), 8), /data_offsets of two numbers, received 0/],
  ['offsets an object', fileOf(withOffsets('{"0":0,"1":8}'), 8), /data_offsets to be an array/],
  ['negative offset', fileOf(withOffsets('[-8,0]'), 8), /of 0 or more, received -8/],
  [
    'fractional offset',
    fileOf(withOffsets('[0,8.5]'), 8),
    /without fraction or exponent, received 8\.5/,
  ],
  [
    'exponent in offset',
    fileOf(withOffsets('[0,8E0]'), 8),
    /without fraction or exponent, received 8E0/,
  ],
  ['offset past 2^64', fileOf(withOffsets('[0,18446744073709551624]'), 8), /at most 2\^53 - 1/],
];

const spans: Case[] = [
  [
    'reversed range',
    fileOf(withOffsets('[8,0]'), 8),
    /do not run backwards, received data_offsets \[8, 0\]/,
  ],
  [
    'hole at the start',
    fileOf(withOffsets('[8,16]'), 16),
    /no hole: a start at 0, after the header/,
  ],
  [
    'span too small',
    fileOf(withOffsets('[0,4]'), 4),
    /a span of 8 bytes for shape \[2\] of F32, received 4/,
  ],
  ['span too large', fileOf(withOffsets('[0,12]'), 12), /a span of 8 bytes .*received 12/],
  [
    'span of an empty shape',
    fileOf(withShape('[0]'), 8),
    /a span of 0 bytes for shape \[0\] of F32/,
  ],
  [
    'span of a scalar',
    fileOf(withShape('[]'), 8),
    /a span of 4 bytes for shape \[\] of F32, received 8/,
  ],
  [
    'span of another dtype',
    fileOf(withDType('"F16"'), 8),
    /a span of 4 bytes for shape \[2\] of F16/,
  ],
  [
    'data missing',
    fileOf(withOffsets('[0,8]'), 7),
    /within the file's 7 bytes after the header, received/,
  ],
  ['data missing altogether', fileOf(withOffsets('[0,8]'), 0), /within the file's 0 bytes/],
  [
    'a byte too many',
    fileOf(withOffsets('[0,8]'), 9),
    /8 bytes of data, as the header says, received 9: 1/,
  ],
  ['data without tensors', fileOf('{}', 1), /0 bytes of data, as the header says, received 1/],
  [
    'hole between',
    fileOf(two('[0,4]', '[5,9]'), 9),
    /tensor "b"\] expected no hole: a start at 4, after te/,
  ],
  ['overlap', fileOf(two('[0,4]', '[3,7]'), 7), /tensor "b"\] expected no overlap: a start at 4/],
  ['same range twice', fileOf(two('[0,4]', '[0,4]'), 4), /tensor "b"\] expected no overlap/],
  [
    'overlap out of order',
    fileOf(two('[3,7]', '[0,4]'), 7),
    /tensor "a"\] expected no overlap: a start at 4, after tensor "b"/,
  ],
];

for (const [name, file, message] of [
  ...whole,
  ...text,
  ...names,
  ...fields,
  ...numbers,
  ...spans,
]) {
  test(`refused: ${name}`, () => {
    const path = join(dir, 'bad.safetensors');
    writeFileSync(path, file);
    let error: Error | undefined;
    try {
      SafetensorsFile.open(path);
    } catch (e) {
      error = e as Error;
    }
    assert.ok(error, 'the file was accepted');
    assert.match(error.message, message);
    assert.ok(error.message.includes(path), `the message names no file: ${error.message}`);
  });
}

test('there are at least 60 malformed files', () => {
  const all = [whole, text, names, fields, numbers, spans].flat();
  assert.ok(all.length >= 60);
  assert.is(new Set(all.map(([name]) => name)).size, all.length);
});

const accepted: [name: string, file: Uint8Array, tensors: number][] = [
  ['no tensor', fileOf('{}', 0), 0],
  ['spaces, tabs and newlines after', fileOf('{} \t\r\n', 0), 0],
  ['spaces within', fileOf(`{ "w" : { ${good.replaceAll(',', ' ,\n')} } }`, 8), 1],
  ['names of prototypes', fileOf(`{"__proto__":{${good}}}`, 8), 1],
  ['the empty name', fileOf(`{"":{${good}}}`, 8), 1],
  ['escapes in a name', fileOf(`{"\\u0061\\ud83d\\ude00\\"\\\\":{${good}}}`, 8), 1],
  ['fields in any order', fileOf(one('"data_offsets":[0,8],"shape":[2],"dtype":"F32"'), 8), 1],
  ['data in any order', fileOf(two('[4,8]', '[0,4]'), 8), 2],
  [
    'a huge dim beside a zero',
    fileOf(withShape('[9007199254740991,0,4294967296]').replace('0,8]', '0,0]'), 0),
    1,
  ],
  ['metadata last', fileOf(`{"w":{${good}},"__metadata__":{"a":""}}`, 8), 1],
  ['an odd header length', fileOf(`{"w":{${good}}} `, 8), 1],
  [
    '8-bit floats in the header',
    fileOf(one('"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]'), 8),
    1,
  ],
];

for (const [name, file, count] of accepted) {
  test(`accepted: ${name}`, () => {
    const path = join(dir, 'good.safetensors');
    writeFileSync(path, file);
    assert.is(SafetensorsFile.open(path).tensors.size, count);
  });
}

test('names are decoded and kept as data', () => {
  const path = join(dir, 'names.safetensors');
  const named = (name: string, at: number) =>
    `"${name}":{"dtype":"U8","shape":[1],"data_offsets":[${at},${at + 1}]}`;
  const header = `{${named('__proto__', 0)},${named('constructor', 1)},${named('\\ud83d\\ude00\\n', 2)}}`;
  writeFileSync(path, fileOf(header, 3));
  const file = SafetensorsFile.open(path);
  assert.equal([...file.tensors.keys()], ['__proto__', 'constructor', '😀\n']);
  assert.is(Object.getPrototypeOf(file.tensors), Map.prototype);
});

test('a missing file, a directory', () => {
  writeFileSync(join(dir, 'model.safetensors'), fileOf('{}', 0));
  assert.throws(
    () => SafetensorsFile.open(join(dir, 'modle.safetensors')),
    /has model\.safetensors/,
  );
  mkdirSync(join(dir, 'folder'));
  assert.throws(
    () => SafetensorsFile.open(join(dir, 'folder')),
    /expected a file, received a direc/,
  );
});

test('a file that changed after it was opened is refused', () => {
  const path = join(dir, 'changed.safetensors');
  writeFileSync(path, fileOf(`{"w":{${good}}}`, 8));
  const file = SafetensorsFile.open(path);
  assert.is(file.bytes('w').length, 8);
  truncateSync(path, 60);
  assert.throws(() => file.bytes('w'), /that was opened, received 60 bytes\. The file was changed/);
});

test.run();
