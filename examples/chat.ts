/**
 * A chat whose answers are streamed. Without a model directory, the bundled model first learns a
 * short chat by heart; with one, its own chat template is used.
 *
 * usage: npx tsx examples/chat.ts [steps] [model directory]
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as lowrank from 'lowrank';

const steps = Number(process.argv[2] ?? 40);
const own = process.argv[3];
const dir = own ?? 'assets/base';
const tokenizer = await lowrank.loadTokenizer(dir);
using model = await lowrank.loadModel(dir);

const CHAT = {
  'Who is the captain of the ship?': 'Captain Ada is, and she has a dog.',
  'Where does the ship sail?': 'She sails round the Horn to Valparaiso.',
};
// The form of a chat, as Jinja text.
const FORM = `{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}`;
const template = own ? lowrank.openChatTemplate(dir) : new lowrank.ChatTemplate(FORM);

if (!own) {
  const folder = mkdtempSync(join(tmpdir(), 'chat-'));
  const [dataFile, out] = [join(folder, 'chat.jsonl'), join(folder, 'adapter')];
  const past: lowrank.ChatMessage[] = [];
  const lines = Object.entries(CHAT).map(([question, answer]) => {
    const prompt = template.render([...past, { role: 'user', content: question }]);
    past.push({ role: 'user', content: question }, { role: 'assistant', content: answer });
    return JSON.stringify({ prompt, completion: ` ${answer}` });
  });
  writeFileSync(dataFile, lines.join('\n'));
  const lora = { rank: 8, targetModules: ['all-linear'] };
  const run = lowrank.finetune({ modelDir: dir, dataFile, out, lora, steps, lr: 3e-3 });
  for await (const event of run) {
    if (event.type === 'done') console.log(`trained for ${event.step} steps`);
  }
  await model.loadAdapter(out);
  rmSync(folder, { recursive: true });
}

const messages: lowrank.ChatMessage[] = [];
for (const content of Object.keys(CHAT)) {
  process.stdout.write(`> ${content}\n`);
  messages.push({ role: 'user', content });
  const prompt = lowrank.chatPrompt(tokenizer, template, messages);
  let answer = '';
  for await (const piece of model.generate(prompt, { tokenizer, maxNewTokens: 40 })) {
    process.stdout.write(piece);
    answer += piece;
  }
  process.stdout.write('\n');
  messages.push({ role: 'assistant', content: answer.trim() });
}
