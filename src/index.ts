/// <reference lib="esnext.disposable" preserve="true" />
/**
 * LoRA fine-tuning from TypeScript.
 *
 * {@link loadModel} and {@link loadTokenizer} load a Hugging Face directory or a model of the Hub;
 * the {@link PretrainedModel} they answer computes (`forward`), generates, and adds, loads,
 * switches, saves and merges LoRA adapters. {@link finetune} does the whole of a training run: a
 * model directory and a JSON Lines file in, a PEFT adapter out; {@link train} is its loop,
 * {@link AdamW} its optimizer. Below them lie tensors, ops and modules.
 *
 * @packageDocumentation
 */

// Tensors, gradients and ops.
export {
  backward,
  checkpoint,
  defineOp,
  detach,
  noGrad,
  scope,
  setTrainable,
} from './autograd/index.js';
// Files.
export {
  type Chat,
  type ChatMessage,
  type ChatOptions,
  ChatTemplate,
  chatPrompt,
  openChatTemplate,
  readChat,
} from './io/chat.js';
export { Checkpoint, openCheckpoint } from './io/checkpoint.js';
export { type SaveOptions, saveCheckpoint } from './io/checkpoint-writer.js';
export {
  type Batch,
  collate,
  type DataRecord,
  type Example,
  packExamples,
  parseJsonl,
  readJsonl,
  tokenizeRecords,
} from './io/dataset.js';
export {
  type Downloaded,
  type HubEvent,
  type HubOptions,
  pullModel,
  resolveModel,
} from './io/hub.js';
export { type LabelledRecord, parseLabelled, type RawLabel, readLabelled } from './io/labelled.js';
export type { LocateOptions } from './io/locate.js';
export { type LoadOptions, SafetensorsFile, writeSafetensors } from './io/safetensors.js';
export {
  BatchSampler,
  LengthSampler,
  type LengthSamplerOptions,
  type SamplerOptions,
} from './io/sampler.js';
export { TokenFile } from './io/token-file.js';
export {
  type DecodeOptions,
  DecodeStream,
  type EncodeBatchOptions,
  type EncodedBatch,
  type EncodeOptions,
  loadTokenizer,
  openTokenizer,
  Tokenizer,
} from './io/tokenizer.js';

// LoRA.
export * as linalg from './linalg/index.js';
export * as algebra from './lora/algebra/index.js';
export * as analysis from './lora/analysis/index.js';
export {
  type AdapterSource,
  type Branch,
  baseFingerprint,
  chooseTargets,
  DoraBranch,
  denseLayers,
  type FileNotes,
  type FullLoraConfig,
  fullConfig,
  LoraAdapters,
  LoraBranch,
  type LoraConfig,
  LoraConv,
  LoraEmbedding,
  type LoraInit,
  LoraLinear,
  loadAdapter,
  type MergeWeights,
  PRESETS,
  readAdapterConfig,
  type Site,
  saveAdapter,
  type Target,
  TokenRows,
  type Variant,
  type WideRank,
  wideRanks,
} from './lora/index.js';

// Models and text.
export type { BeamOptions, EndReason, Hypothesis } from './models/beam.js';
export {
  BertForSequenceClassification,
  RobertaForSequenceClassification,
} from './models/bert.js';
export { type BertConfig, bertConfig } from './models/bert-config.js';
export { CausalLM, type KvCache, type LossResult, type TokenBatch } from './models/causal-lm.js';
export {
  type ProblemType,
  type SequenceBatch,
  SequenceClassifier,
} from './models/classifier.js';
export { type ProductSettings, setCompute, setProducts } from './models/compute.js';
export {
  beamSearch,
  type Ended,
  type GenerateOptions,
  generate,
  generateBatch,
  type SamplingOptions,
} from './models/generate.js';
export {
  type GenerationDefaults,
  generationDefaults,
  withDefaults,
} from './models/generation-config.js';
export {
  type Gpt2Config,
  Gpt2ForSequenceClassification,
  Gpt2LMHeadModel,
  gpt2Config,
} from './models/gpt2.js';
export { adapterHead, type ClassifierHead, hasHead, labelsOf } from './models/head.js';
export { randomParameters } from './models/init.js';
export type { ForwardInput, ForwardOutput, TokenValues } from './models/inputs.js';
export { type Inspection, type InspectOptions, inspect } from './models/inspect.js';
export { LlamaForCausalLM, LlamaForSequenceClassification } from './models/llama.js';
export { type LlamaConfig, llamaConfig } from './models/llama-config.js';
export {
  buildCausalLM,
  buildModel,
  type LoadByIdOptions,
  type LoadModelOptions,
  loadModel,
  type Model,
  modelTypes,
  openModel,
  type TaskModels,
} from './models/load.js';
export {
  type AdapterToMerge,
  type Merged,
  type MergeOptions,
  mergeAdapters,
} from './models/merge.js';
export {
  type AdaptersToMerge,
  type AddAdapterOptions,
  type IdOptions,
  type LoadAdapterOptions,
  type ModelOrigin,
  PretrainedModel,
  type Prompt,
  type Recipe,
  type SaveAdapterOptions,
  type SavePretrainedOptions,
  type TextPromptOptions,
  type TextStream,
  type TokenPrompt,
  type TokenStream,
} from './models/pretrained.js';
export {
  type LazyTensor,
  type SavedModel,
  type SaveModelOptions,
  type SaveProgress,
  saveModel,
} from './models/save.js';
export {
  generateText,
  promptIds,
  streamText,
  type TextOptions,
  type TextStep,
  textSteps,
} from './models/text.js';
// Modules.
export {
  Conv1D,
  Conv1d,
  Conv2d,
  Dense,
  Embedding,
  LayerNorm,
  Linear,
  Module,
  type ParameterSource,
  PlainDense,
  RMSNorm,
  withTraining,
} from './nn/index.js';
export * as ops from './ops/index.js';
// Optimizers and schedules.
export {
  AdamW,
  type AdamWOptions,
  Clipping,
  clipFactor,
  decayGroups,
  gradientNorm,
  type LoraPlusOptions,
  loraPlusGroups,
  Optimizer,
  type ParameterGroup,
  SCHEDULES,
  type ScheduleName,
  SGD,
  type SGDOptions,
  scheduleFactor,
} from './optim/index.js';
export type { Backend, Compute, MemoryBooks, Purpose } from './tensor/backend.js';
export { type CreateOptions, full, ones, tensor, zeros } from './tensor/create.js';
export { Deferred } from './tensor/deferred.js';
export type { ActivationDType, DType } from './tensor/dtype.js';
export { BACKENDS, defaultBackend, getBackend, setDefaultBackend } from './tensor/registry.js';
export type { Shape } from './tensor/shape.js';
export { Tensor } from './tensor/tensor.js';
// Fine-tuning, evaluation, pretraining.
export {
  bestClass,
  type ClassifierEvaluation,
  evaluateClassifier,
  probabilities,
} from './train/classify.js';
export {
  type DataOptions,
  evaluationBatches,
  type TrainingData,
  trainingData,
} from './train/data.js';
export { type DryRun, dryRun } from './train/dry-run.js';
export { type Evaluation, evaluate } from './train/evaluate.js';
export { finetune } from './train/finetune.js';
export type * from './train/finetune-options.js';
export { type LabelOptions, LabelSpace, labelsOfData } from './train/labels.js';
export * as metrics from './train/metrics.js';
export { type Prediction, predictRecords } from './train/predictions.js';
export { type EvalEvent, type PretrainOptions, pretrain } from './train/pretrain.js';
export { encodeRecords, sequenceSource } from './train/sequences.js';
export { hasTrainingState, loadTrainingState, saveTrainingState } from './train/state.js';
export {
  type AnyBatch,
  type BatchSource,
  type Learner,
  type StepEvent,
  type TrainOptions,
  train,
} from './train/trainer.js';
