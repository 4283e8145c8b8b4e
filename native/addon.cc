// The bridge to JavaScript: convert, look up, call, translate errors. Nothing else knows napi.
#include <dlfcn.h>
#include <napi.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "common/engine.h"
#include "common/error.h"
#include "cpu/engine.h"

namespace {

using namespace lowrank;

constexpr const char* kContract = "9";  // of docs/kernels.md
constexpr size_t kMinCommands = 4096;
constexpr double kMaxInteger = 9007199254740992.0;  // 2^53

// One engine and what its calls travel through.
struct Session {
  std::unique_ptr<Engine> engine;
  Napi::Reference<Napi::Float64Array> commands;
  std::vector<View> views;  // reused from call to call, as are the attributes
  std::vector<double> attrs;

  explicit Session(std::unique_ptr<Engine> engine) : engine(std::move(engine)) {}
};

// Everything of one environment; freed when it ends.
struct Environment {
  std::vector<std::unique_ptr<Session>> sessions;
};

// Runs f with the session of the function called; C++ errors become JavaScript ones.
template <class F>
Napi::Value guarded(const Napi::CallbackInfo& info, F f) {
  Napi::Env env = info.Env();
  try {
    if (!env.GetInstanceData<Environment>()) {
      throw Error("[addon] expected a live environment, received one that has ended");
    }
    return f(env, *static_cast<Session*>(info.Data()));
  } catch (const Napi::Error&) {
    throw;
  } catch (const RangeError& e) {
    throw Napi::RangeError::New(env, e.what());
  } catch (const TypeError& e) {
    throw Napi::TypeError::New(env, e.what());
  } catch (const std::bad_alloc&) {
    throw Napi::RangeError::New(env, "[addon] expected memory for working storage, received none");
  } catch (const std::exception& e) {
    throw Napi::Error::New(env, e.what());
  } catch (...) {
    throw Napi::Error::New(env, "[addon] expected a known error, received another");
  }
}

std::string describe(const Napi::Value& v) {
  if (v.IsNumber()) return std::to_string(v.As<Napi::Number>().DoubleValue());
  switch (v.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
      return "a boolean";
    case napi_string:
      return "a string";
    case napi_object:
      return "an object";
    case napi_function:
      return "a function";
    default:
      return "another type";
  }
}

double number(const Napi::CallbackInfo& info, size_t i, const char* where, const char* what) {
  Napi::Value v = i < info.Length() ? info[i] : info.Env().Undefined();
  if (!v.IsNumber()) {
    throw TypeError(std::string("[") + where + "] expected " + what + ", received " + describe(v));
  }
  return v.As<Napi::Number>().DoubleValue();
}

// An argument that is an integer from 0 to 2^53.
uint64_t natural(const Napi::CallbackInfo& info, size_t i, const char* where, const char* what) {
  double v = number(info, i, where, what);
  if (!(v >= 0 && v <= kMaxInteger && v == std::floor(v))) fail(where, what, std::to_string(v));
  return static_cast<uint64_t>(v);
}

Purpose purpose(const Napi::CallbackInfo& info, size_t i, const char* where) {
  uint64_t p = natural(info, i, where, "a purpose from 0 to 5");
  if (p >= kPurposes) fail(where, "a purpose from 0 to 5", std::to_string(p));
  return static_cast<Purpose>(p);
}

std::string text(const Napi::CallbackInfo& info, size_t i, const char* where, const char* what) {
  Napi::Value v = i < info.Length() ? info[i] : info.Env().Undefined();
  if (!v.IsString()) {
    throw TypeError(std::string("[") + where + "] expected " + what + ", received " + describe(v));
  }
  return v.As<Napi::String>().Utf8Value();
}

Napi::Value describeAddon(const Napi::CallbackInfo& info) {
  return guarded(info, [](Napi::Env env, Session& state) -> Napi::Value {
    Napi::Object o = Napi::Object::New(env);
    o.Set("version", Napi::String::New(env, kContract));
    o.Set("isa", Napi::String::New(env, state.engine->device()));
    Napi::Array isas = Napi::Array::New(env);
    uint32_t at = 0;
    for (const std::string& isa : state.engine->devices())
      isas.Set(at++, Napi::String::New(env, isa));
    o.Set("isas", isas);
    o.Set("threads", Napi::Number::New(env, state.engine->threads()));
    o.Set("compute", Napi::String::New(env, state.engine->brain() ? "bf16" : "exact"));
    Napi::Object options = Napi::Object::New(env);
    for (const auto& [name, on] : state.engine->options())
      options.Set(name, Napi::Boolean::New(env, on));
    o.Set("options", options);
    Napi::Array kernels = Napi::Array::New(env);
    uint32_t place = 0;
    for (const char* name : state.engine->kernels())
      kernels.Set(place++, Napi::String::New(env, name));
    o.Set("kernels", kernels);
    return o;
  });
}

Napi::Value facts(const Napi::CallbackInfo& info) {
  return guarded(info, [](Napi::Env env, Session& state) -> Napi::Value {
    Napi::Object o = Napi::Object::New(env);
    for (const auto& [name, value] : state.engine->facts()) o.Set(name, value);
    return o;
  });
}

Napi::Value bind(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    const char* want = "a Float64Array of at least 4096 numbers";
    Napi::Value v = info.Length() > 0 ? info[0] : env.Undefined();
    if (!v.IsTypedArray() || v.As<Napi::TypedArray>().TypedArrayType() != napi_float64_array) {
      throw TypeError(std::string("[bind] expected ") + want + ", received " + describe(v));
    }
    Napi::Float64Array array = v.As<Napi::Float64Array>();
    if (array.ElementLength() < kMinCommands)
      fail("bind", want, std::to_string(array.ElementLength()));
    state.commands = Napi::Reference<Napi::Float64Array>::New(array, 1);
    return env.Undefined();
  });
}

// Reads the bound array, checking every number.
class Reader {
 public:
  Reader(const char* kernel, const double* data, size_t length)
      : kernel_(kernel), data_(data), length_(length) {}

  double next() {
    if (at_ >= length_)
      fail(kernel_, "a complete command", "one cut off at " + std::to_string(length_));
    return data_[at_++];
  }
  uint64_t natural(const char* what) {
    double v = next();
    if (!(v >= 0 && v <= kMaxInteger && v == std::floor(v))) fail(kernel_, what, std::to_string(v));
    return static_cast<uint64_t>(v);
  }
  const double* rest(size_t n) {
    if (n > length_ - at_)
      fail(kernel_, "a complete command", std::to_string(n) + " attributes past its end");
    return data_ + at_;
  }

 private:
  const char* kernel_;
  const double* data_;
  size_t length_;
  size_t at_ = 0;
};

// Stands in for the address of a tensor without elements.
alignas(64) char nothing[64];

View readView(Reader& r, const Memory& memory, const char* kernel) {
  View v;
  uint64_t handle = r.natural("a handle");
  const Memory::Buffer& buffer = memory.at(handle, kernel);
  uint64_t offset = r.natural("a byte offset"), dtype = r.natural("a dtype"),
           rank = r.natural("a number of axes");
  if (dtype >= kDTypes) fail(kernel, "a dtype from 0 to 7", std::to_string(dtype));
  if (rank > kMaxRank) fail(kernel, "at most 8 axes", std::to_string(rank));
  v.dtype = static_cast<DType>(dtype);
  v.rank = static_cast<int>(rank);
  v.readOnly = buffer.mapped;
  uint64_t size = dtypeSize(v.dtype), nonZero = 1;
  bool empty = false;
  for (int i = 0; i < v.rank; i++) {
    uint64_t d = r.natural("a dimension");
    v.dims[i] = static_cast<int64_t>(d);
    if (d == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(nonZero, d, &nonZero) || nonZero > (uint64_t{1} << 52)) {
      // Also for empty tensors, so that products of some of the axes never overflow.
      fail(kernel, "a shape of fewer than 2^52 elements", v.describe());
    }
  }
  uint64_t count = empty ? 0 : nonZero;
  v.count = static_cast<int64_t>(count);
  if (offset > buffer.bytes || count * size > buffer.bytes - offset) {
    fail(kernel, "a tensor within its " + std::to_string(buffer.bytes) + " bytes",
         v.describe() + " at byte " + std::to_string(offset));
  }
  if (offset % size != 0) {
    fail(kernel, "a byte offset that is a multiple of " + std::to_string(size),
         std::to_string(offset));
  }
  v.handle = handle;
  v.data = count == 0 ? nothing : buffer.data + offset;
  return v;
}

Napi::Value run(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    const std::vector<const char*>& names = state.engine->kernels();
    uint64_t index = natural(info, 0, "run", "the number of a kernel");
    if (index >= names.size()) {
      fail("run", "a kernel below " + std::to_string(names.size()), std::to_string(index));
    }
    const char* kernel = names[index];
    if (state.commands.IsEmpty()) fail("run", "bind() before", "no bound array");
    Napi::Float64Array commands = state.commands.Value();
    size_t length = commands.ElementLength();
    if (length < kMinCommands) fail("run", "the bound array alive", "one that was detached");
    Reader r(kernel, commands.Data(), length);
    size_t tensors = r.natural("a number of tensors");
    state.views.clear();
    for (size_t i = 0; i < tensors; i++)
      state.views.push_back(readView(r, state.engine->memory(), kernel));
    size_t attrs = r.natural("a number of attributes");
    const double* from = r.rest(attrs);
    state.attrs.assign(from, from + attrs);
    state.engine->run(index, state.views.data(), tensors, state.attrs.data(), attrs);
    return env.Undefined();
  });
}

Napi::Value alloc(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    double bytes = number(info, 0, "alloc", "a number of bytes");
    if (!(bytes >= 0 && bytes == std::floor(bytes) && bytes <= kMaxInteger)) {
      throw RangeError("[alloc] expected a number of bytes that memory can have, received " +
                       std::to_string(bytes));
    }
    uint64_t handle =
        state.engine->memory().alloc(static_cast<uint64_t>(bytes), purpose(info, 1, "alloc"));
    return Napi::Number::New(env, static_cast<double>(handle));
  });
}

Napi::Value freeHandle(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    state.engine->memory().free(natural(info, 0, "free", "a handle"));
    return env.Undefined();
  });
}

Napi::Value retag(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    uint64_t handle = natural(info, 0, "retag", "a handle");
    state.engine->memory().retag(handle, purpose(info, 1, "retag"));
    return env.Undefined();
  });
}

// `bytes` of a buffer from `offset` on.
char* partOf(const Memory::Buffer& buffer, uint64_t offset, uint64_t bytes, const char* where) {
  if (offset > buffer.bytes || bytes > buffer.bytes - offset) {
    fail(where, "a range within " + std::to_string(buffer.bytes) + " bytes",
         std::to_string(bytes) + " bytes at " + std::to_string(offset));
  }
  return buffer.data + offset;
}

Napi::Uint8Array byteArray(const Napi::CallbackInfo& info, size_t i, const char* where) {
  Napi::Value v = info.Length() > i ? info[i] : info.Env().Undefined();
  if (!v.IsTypedArray() || v.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw TypeError(std::string("[") + where + "] expected a Uint8Array, received " + describe(v));
  }
  return v.As<Napi::Uint8Array>();
}

struct Bytes {
  char* at;
  uint8_t* array;
  size_t length;
};

// The part of a buffer that a Uint8Array argument is to be copied to or from.
Bytes bytesOf(const Napi::CallbackInfo& info, Session& state, const char* where, bool writes) {
  const Memory::Buffer& buffer =
      state.engine->memory().at(natural(info, 0, where, "a handle"), where);
  uint64_t offset = natural(info, 1, where, "a byte offset");
  Napi::Uint8Array array = byteArray(info, 2, where);
  size_t length = array.ElementLength();
  if (writes && buffer.mapped) fail(where, "memory that may be written", "a mapped file");
  char* at = partOf(buffer, offset, length, where);
  return {at, length ? array.Data() : nullptr, length};
}

Napi::Value writeBytes(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    Bytes b = bytesOf(info, state, "write", true);
    if (b.length) state.engine->write(b.at, b.array, b.length);
    return env.Undefined();
  });
}

Napi::Value readBytes(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    Bytes b = bytesOf(info, state, "read", false);
    if (b.length) state.engine->read(b.array, b.at, b.length);
    return env.Undefined();
  });
}

// writeFile(handle, offset, path, position, bytes): part of a file into a buffer.
Napi::Value writeFile(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    const Memory::Buffer& buffer =
        state.engine->memory().at(natural(info, 0, "writeFile", "a handle"), "writeFile");
    uint64_t offset = natural(info, 1, "writeFile", "a byte offset");
    std::string path = text(info, 2, "writeFile", "a path");
    uint64_t position = natural(info, 3, "writeFile", "a place in the file");
    uint64_t bytes = natural(info, 4, "writeFile", "a number of bytes");
    if (path.find('\0') != std::string::npos)
      fail("writeFile", "a path without NUL", "one with it");
    if (buffer.mapped) fail("writeFile", "memory that may be written", "a mapped file");
    char* at = partOf(buffer, offset, bytes, "writeFile");
    if (bytes) state.engine->writeFile(at, path, position, bytes);
    return env.Undefined();
  });
}

// readLater(handle, offset, bytes): the number of a copy under way.
Napi::Value readLater(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    const Memory::Buffer& buffer =
        state.engine->memory().at(natural(info, 0, "readLater", "a handle"), "readLater");
    uint64_t offset = natural(info, 1, "readLater", "a byte offset");
    uint64_t bytes = natural(info, 2, "readLater", "a number of bytes");
    uint64_t read = state.engine->readLater(partOf(buffer, offset, bytes, "readLater"), bytes);
    return Napi::Number::New(env, static_cast<double>(read));
  });
}

Napi::Value takeRead(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    uint64_t read = natural(info, 0, "takeRead", "a copy under way");
    Napi::Uint8Array into = byteArray(info, 1, "takeRead");
    state.engine->takeRead(read, into.Data(), into.ElementLength());
    return env.Undefined();
  });
}

Napi::Value dropRead(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    state.engine->dropRead(natural(info, 0, "dropRead", "a copy under way"));
    return env.Undefined();
  });
}

Napi::Value map(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    std::string path = text(info, 0, "map", "a path");
    if (path.find('\0') != std::string::npos) fail("map", "a path without NUL", "one with it");
    uint64_t bytes = 0;
    uint64_t handle = state.engine->memory().map(path, bytes);
    Napi::Object o = Napi::Object::New(env);
    o.Set("handle", Napi::Number::New(env, static_cast<double>(handle)));
    o.Set("bytes", Napi::Number::New(env, static_cast<double>(bytes)));
    return o;
  });
}

Napi::Value memory(const Napi::CallbackInfo& info) {
  return guarded(info, [](Napi::Env env, Session& state) -> Napi::Value {
    const Memory::Books& b = state.engine->memory().books();
    auto count = [&](uint64_t n) { return Napi::Number::New(env, static_cast<double>(n)); };
    Napi::Array live = Napi::Array::New(env, kPurposes), peak = Napi::Array::New(env, kPurposes);
    for (uint32_t p = 0; p < kPurposes; p++) {
      live.Set(p, count(b.live[p]));
      peak.Set(p, count(b.peak[p]));
    }
    Napi::Object o = Napi::Object::New(env);
    o.Set("live", live);
    o.Set("peak", peak);
    o.Set("total", count(b.total));
    o.Set("totalPeak", count(b.totalPeak));
    o.Set("pooled", count(b.pooled));
    o.Set("handles", count(b.handles));
    o.Set("mapped", count(b.mapped));
    return o;
  });
}

Napi::Value resetPeak(const Napi::CallbackInfo& info) {
  return guarded(info, [](Napi::Env env, Session& state) -> Napi::Value {
    state.engine->memory().resetPeak();
    return env.Undefined();
  });
}

Napi::Value trim(const Napi::CallbackInfo& info) {
  return guarded(info, [](Napi::Env env, Session& state) -> Napi::Value {
    state.engine->memory().trim();
    return env.Undefined();
  });
}

Napi::Value setThreads(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    uint64_t n = natural(info, 0, "setThreads", "a number of threads from 1 to 256");
    state.engine->setThreads(static_cast<int>(std::min(n, uint64_t{1} << 30)));
    return env.Undefined();
  });
}

Napi::Value setIsa(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    state.engine->setDevice(text(info, 0, "setIsa", "the name of an instruction set"));
    return env.Undefined();
  });
}

Napi::Value setCompute(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    std::string mode = text(info, 0, "setCompute", "exact or bf16");
    if (mode != "exact" && mode != "bf16") fail("setCompute", "exact or bf16", mode);
    state.engine->setBrain(mode == "bf16");
    return env.Undefined();
  });
}

Napi::Value setOption(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    std::string name = text(info, 0, "setOption", "the name of a setting");
    Napi::Value on = info.Length() > 1 ? info[1] : env.Undefined();
    if (!on.IsBoolean())
      throw TypeError("[setOption] expected a boolean, received " + describe(on));
    state.engine->setOption(name, on.As<Napi::Boolean>().Value());
    return env.Undefined();
  });
}

Napi::Value measureFmaPeak(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    return Napi::Number::New(env, state.engine->fmaPeak());
  });
}

Napi::Value beginRecord(const Napi::CallbackInfo& info) {
  return guarded(info, [](Napi::Env env, Session& state) -> Napi::Value {
    state.engine->beginRecord();
    return env.Undefined();
  });
}

// The recording's number, or the reason why there is none.
Napi::Value endRecord(const Napi::CallbackInfo& info) {
  return guarded(info, [](Napi::Env env, Session& state) -> Napi::Value {
    std::string why;
    uint64_t graph = state.engine->endRecord(why);
    if (graph == 0) return Napi::String::New(env, why);
    return Napi::Number::New(env, static_cast<double>(graph));
  });
}

Napi::Value setInput(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    uint64_t graph = natural(info, 0, "setInput", "a recording");
    uint64_t input = natural(info, 1, "setInput", "the number of an input");
    Napi::Value v = info.Length() > 2 ? info[2] : env.Undefined();
    if (!v.IsTypedArray() || v.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
      throw TypeError("[setInput] expected a Uint8Array, received " + describe(v));
    }
    Napi::Uint8Array bytes = v.As<Napi::Uint8Array>();
    state.engine->setInput(graph, input, bytes.Data(), bytes.ElementLength());
    return env.Undefined();
  });
}

// replay(recording, [kernel, attribute, by]…): false where the recording is gone.
Napi::Value replay(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    std::vector<Engine::Shift> shifts;
    for (size_t i = 1; i + 2 < info.Length(); i += 3) {
      shifts.push_back({natural(info, i, "replay", "the number of a kernel"),
                        natural(info, i + 1, "replay", "the number of an attribute"),
                        number(info, i + 2, "replay", "a number")});
    }
    uint64_t graph = natural(info, 0, "replay", "a recording");
    return Napi::Boolean::New(env, state.engine->replay(graph, shifts));
  });
}

Napi::Value dropRecord(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session& state) -> Napi::Value {
    state.engine->dropRecord(natural(info, 0, "dropRecord", "a recording"));
    return env.Undefined();
  });
}

// The functions of one engine, each bound to its session.
void fill(Napi::Env env, Napi::Object target, Session* session) {
  auto add = [&](const char* name, Napi::Value (*f)(const Napi::CallbackInfo&)) {
    target.Set(name, Napi::Function::New(env, f, name, session));
  };
  add("info", describeAddon);
  add("facts", facts);
  add("bind", bind);
  add("run", run);
  add("alloc", alloc);
  add("free", freeHandle);
  add("retag", retag);
  add("write", writeBytes);
  add("read", readBytes);
  add("writeFile", writeFile);
  add("readLater", readLater);
  add("takeRead", takeRead);
  add("dropRead", dropRead);
  add("map", map);
  add("memory", memory);
  add("resetPeak", resetPeak);
  add("trim", trim);
  add("setThreads", setThreads);
  add("fmaPeak", measureFmaPeak);
  add("setCompute", setCompute);
  add("setOption", setOption);
  add("setIsa", setIsa);
  add("beginRecord", beginRecord);
  add("endRecord", endRecord);
  add("setInput", setInput);
  add("replay", replay);
  add("dropRecord", dropRecord);
}

// open(path, device): the functions of an engine in a library of its own, which stays loaded.
Napi::Value open(const Napi::CallbackInfo& info) {
  return guarded(info, [&](Napi::Env env, Session&) -> Napi::Value {
    std::string path = text(info, 0, "open", "the path of a backend's library");
    uint64_t device = natural(info, 1, "open", "the number of a device");
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) fail("open", "a library that loads", dlerror());
    auto openEngine = reinterpret_cast<OpenEngine>(dlsym(library, "lowrankOpenEngine"));
    if (!openEngine) fail("open", "a backend of lowrank", path);
    char error[1024] = "";
    int number = static_cast<int>(std::min(device, uint64_t{1} << 30));
    std::unique_ptr<Engine> engine(openEngine(kEngineContract, number, error, sizeof error));
    if (!engine) throw Error(error);
    Environment* state = env.GetInstanceData<Environment>();
    state->sessions.push_back(std::make_unique<Session>(std::move(engine)));
    Napi::Object exports = Napi::Object::New(env);
    fill(env, exports, state->sessions.back().get());
    return exports;
  });
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* state = new Environment();
  env.SetInstanceData(state);
  state->sessions.push_back(std::make_unique<Session>(openCpu()));
  Session* cpu = state->sessions.back().get();
  fill(env, exports, cpu);
  exports.Set("open", Napi::Function::New(env, open, "open", cpu));
  return exports;
}

}  // namespace

NODE_API_MODULE(lowrank, init)
