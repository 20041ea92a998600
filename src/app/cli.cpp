#include "app/cli.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <csignal>
#include <functional>
#include <new>

#include "app/options.hpp"
#include "base/errors.hpp"
#include "base/output-file.hpp"
#include "base/printable.hpp"

namespace dllama {

namespace {

#ifdef DLLAMA_HAS_CUDA
constexpr const char* kVersion =
    "dllama " DLLAMA_VERSION " (CPU, CUDA for compute capability " DLLAMA_CUDA_GENERATIONS ")";
#else
constexpr const char* kVersion = "dllama " DLLAMA_VERSION " (CPU)";
#endif

const CLI::Validator kNotNegative(
    [](const std::string& text) { return text.starts_with('-') ? text + " is below 0" : std::string(); }, "");

// A variable of a script that was not set must not mean "no secret".
const CLI::Validator kNamed([](const std::string& text) { return text.empty() ? "it names no file" : ""; }, "");
/// CLI11 itself would take -1 for 2^64 - 1.
const CLI::Validator kSeed(
    [](const std::string& text) {
        uint64_t seed = 0;
        const char* end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, seed);
        if (error == std::errc() && stop == end) return std::string();
        return text +
               " is not a whole number from 0 to 18446744073709551615; leave --seed away for a new one each time";
    },
    "");

void addClusterFlags(CLI::App& command, ClusterFlags& c) {
    command.add_option("--workers", c.workers, "Machines that compute along, each running dllama worker")
        ->type_name("HOST:PORT ...")
        ->delimiter(',');
    command.add_option("--secret-file", c.secretFile, "The cluster's secret (dllama keygen); or in $DLLAMA_SECRET")
        ->type_name("FILE")
        ->check(kNamed);
    command.add_flag("--insecure", c.insecure, "Talk to other machines in plain text");
    command
        .add_option("--node-weights", c.nodeWeights, "Shares of the work, root first, or measured; without it equal")
        ->type_name("X,X,...");
    command.add_option("--memory-limit", c.memoryLimitMb, "What this machine may use, in MB; of several GPUs each")
        ->type_name("MB")
        ->check(kNotNegative);
    command
        .add_option("--expert-placement", c.expertPlacement,
                    "Experts cut across all machines (sliced), each on one (whole), or auto")
        ->type_name("HOW")
        ->capture_default_str();
    command
        .add_option("--wait-for-workers", c.waitForWorkers, "Wait so long for a lost worker before going on without")
        ->type_name("SECONDS")
        ->capture_default_str();
    command
        .add_option("--collectives", c.collectives,
                    "How ranks all-reduce: tcp, nccl, peer (in each other's GPU memory), or auto")
        ->type_name("HOW")
        ->check(CLI::IsMember({"auto", "tcp", "nccl", "peer"}))
        ->capture_default_str();
}

void addDeviceFlags(CLI::App& command, DeviceFlags& d) {
    command.add_option("--device", d.device, "What computes: cpu, cuda, or auto: a GPU if there is one with room")
        ->type_name("NAME")
        ->capture_default_str();
    command.add_option("--gpu-index", d.gpuIndex, "Which GPUs, from 0; of several each is a rank")
        ->type_name("N,N,...");
}

void addTrace(CLI::App& command, std::string& path) {
    command.add_option("--trace", path, "Write what was computed when, for https://ui.perfetto.dev")
        ->type_name("FILE")
        ->check(kNamed);
}

void addModelFlags(CLI::App& command, ModelOptions& o) {
    command.add_option("--model", o.model, "Model file (.m); without it the demo model")->type_name("FILE");
    command.add_option("--tokenizer", o.tokenizer, "Tokenizer file (.t); without it the one beside the model")
        ->type_name("FILE");
    command.add_option("--nthreads", o.nThreads, "Threads; without it one for each core")->type_name("N");
    command.add_option("--max-seq-len", o.maxSeqLen, "Context in tokens; without it the model's, at most 8192")
        ->type_name("N");
    command.add_option("--batch-size", o.batchSize, "Prompt tokens computed at once")
        ->type_name("N")
        ->capture_default_str();
    command.add_option("--kv-type", o.kvType, "KV cache: f16, f32, or auto (f32 for F32 weights)")
        ->type_name("TYPE")
        ->capture_default_str();
    command
        .add_option("--buffer-float-type", o.bufferFloatType,
                    "What activations are rounded to between machines: q80, f16 or f32")
        ->type_name("TYPE")
        ->capture_default_str();
    command.add_flag("--verbose", o.verbose, "Say all there is to know about model, machine and run");
    addTrace(command, o.trace);
    addDeviceFlags(command, o.device);
    addClusterFlags(command, o.cluster);
}

void addSamplingFlags(CLI::App& command, SamplingParams& s) {
    command.add_option("--temperature", s.temperature, "0: always the most likely token")
        ->type_name("X")
        ->capture_default_str();
    command.add_option("--topp,--top-p", s.topP, "Keep the most likely tokens with this much probability together")
        ->type_name("X")
        ->capture_default_str();
    command.add_option("--topk,--top-k", s.topK, "Keep the N most likely tokens; 0: all")
        ->type_name("N")
        ->capture_default_str();
    command.add_option("--minp,--min-p", s.minP, "Keep tokens with at least this share of the best one's probability")
        ->type_name("X")
        ->capture_default_str();
    command.add_option("--repetition-penalty", s.repetitionPenalty, "Above 1: tokens seen before become less likely")
        ->type_name("X")
        ->capture_default_str();
}

CLI::Option* addSeed(CLI::App& command, SamplingParams& s) {
    return command.add_option("--seed", s.seed, "Same seed, same text; without it a new one each time")
        ->type_name("N")
        ->check(kSeed);
}

/// Calls `run` when the subcommand was chosen and remembers its exit code.
template <typename Options>
void onChosen(CLI::App* command, int& exitCode, int (*run)(const Options&), std::shared_ptr<Options> options) {
    command->callback([&exitCode, run, options] { exitCode = run(*options); });
}

void addInference(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("inference", "Continue a prompt, with the time of every step");
    const auto o = std::make_shared<InferenceOptions>();
    addModelFlags(*command, o->model);
    command->add_option("--prompt", o->prompt, "Text to continue; special tokens in it are parsed")->type_name("TEXT");
    command->add_option("--steps", o->steps, "Tokens of prompt and answer together; 0: to the end of the answer")
        ->type_name("N")
        ->capture_default_str();
    addSamplingFlags(*command, o->sampling);
    CLI::Option* seed = addSeed(*command, o->sampling);
    command->callback([&exitCode, o, seed] {
        o->seedGiven = seed->count() > 0;
        exitCode = runInference(*o);
    });
}

void addChat(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("chat", "Talk to the model; Ctrl-C stops an answer, Ctrl-D ends the chat");
    const auto o = std::make_shared<ChatOptions>();
    addModelFlags(*command, o->model);
    CLI::Option* system =
        command->add_option("--system", o->system, "System prompt, \"\" for none; without it you are asked")
            ->type_name("TEXT");
    command->add_option("--chat-template", o->chatFormat, "Chat format; without it the tokenizer's")->type_name("NAME");
    command->add_option("--max-tokens", o->maxTokens, "Longest answer")->type_name("N");
    command->add_flag("--no-think", o->noThink, "Ask the model to answer without thinking first");
    addSamplingFlags(*command, o->sampling);
    CLI::Option* seed = addSeed(*command, o->sampling);
    command->callback([&exitCode, o, seed, system] {
        o->systemGiven = system->count() > 0;
        o->seedGiven = seed->count() > 0;
        exitCode = runChat(*o);
    });
}

void addApi(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("api", "Serve OpenAI's chat completions and completions over HTTP");
    const auto o = std::make_shared<ApiOptions>();
    addModelFlags(*command, o->model);
    command->add_option("--host", o->host, "Address to listen on; 0.0.0.0: all of this machine's")
        ->type_name("ADDRESS")
        ->capture_default_str();
    command->add_option("--port", o->port, "Port to listen on; 0: any free one")
        ->type_name("N")
        ->check(CLI::Range(0, 65535))
        ->capture_default_str();
    command->add_option("--parallel", o->nParallel, "Requests that are answered at once")
        ->type_name("N")
        ->check(CLI::Range(1, 256))
        ->capture_default_str();
    command->add_option("--queue", o->queueLimit, "Requests that may wait for that")
        ->type_name("N")
        ->check(CLI::Range(0, 1000000))
        ->capture_default_str();
    command->add_option("--served-name", o->names, "Names of the model for clients, the first is told; *: any name")
        ->type_name("NAME,...")
        ->delimiter(',');
    command->add_option("--chat-template", o->chatFormat, "Chat format; without it the tokenizer's")->type_name("NAME");
    command
        ->add_option("--api-key-file", o->keyFile, "Keys that clients may use, one a line; or one in $DLLAMA_API_KEY")
        ->type_name("FILE")
        ->check(kNamed);
    command->add_option("--cors-origin", o->corsOrigin, "Let web pages of this origin ask; *: of any")
        ->type_name("ORIGIN");
    command->add_option("--tls-cert", o->tlsCertificate, "Serve HTTPS with this certificate chain (PEM)")
        ->type_name("FILE")
        ->check(kNamed);
    command->add_option("--tls-key", o->tlsKey, "The certificate's key (PEM)")->type_name("FILE")->check(kNamed);
    command->add_option("--request-time", o->requestSeconds, "Give an answer up after so long; 0: never")
        ->type_name("SECONDS")
        ->check(CLI::Range(0, 1000000))
        ->capture_default_str();
    command->add_option("--drain-time", o->drainSeconds, "On SIGTERM, wait so long for answers under way")
        ->type_name("SECONDS")
        ->check(CLI::Range(0, 1000000))
        ->capture_default_str();
    command->add_option("--body-limit", o->bodyMegabytes, "Largest request, in MB")
        ->type_name("MB")
        ->check(CLI::Range(1, 4096))
        ->capture_default_str();
    command->add_option("--max-connections", o->connections, "Clients that are connected at once")
        ->type_name("N")
        ->check(CLI::Range(1, 60000))
        ->capture_default_str();
    addSamplingFlags(*command, o->sampling);
    onChosen(command, exitCode, runApi, o);
}

void addPerplexity(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("perplexity", "How well the model predicts a text");
    const auto o = std::make_shared<PerplexityOptions>();
    addModelFlags(*command, o->model);
    command->add_option("--prompt", o->prompt, "The text")->type_name("TEXT");
    command->add_option("--text-file", o->textFile, "File with the text")->type_name("FILE");
    command->add_option("--ids-file", o->idsFile, "File with token ids")->type_name("FILE");
    command->add_option("--chunk", o->chunk, "Score pieces of N tokens, each by itself")->type_name("N");
    onChosen(command, exitCode, runPerplexity, o);
}

void addBenchmark(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("benchmark", "Speed of prompts and answers, as a Markdown table");
    const auto o = std::make_shared<BenchmarkOptions>();
    addModelFlags(*command, o->model);
    command->add_option("-p,--prompt-tokens", o->promptTokens, "Prompt lengths; 0: none")
        ->type_name("N")
        ->capture_default_str();
    command->add_option("-n,--answer-tokens", o->answerTokens, "Answer lengths; 0: none")
        ->type_name("N")
        ->capture_default_str();
    command->add_option("-r,--repetitions", o->repetitions, "Runs of each")->type_name("N")->capture_default_str();
    command->add_option("-d,--depth", o->depth, "Tokens in the context before")->type_name("N")->capture_default_str();
    command->add_flag("--json", o->json, "JSON instead of a table");
    onChosen(command, exitCode, runBenchmark, o);
}

void addInfo(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("info", "What a model file holds and the memory it needs");
    const auto o = std::make_shared<InfoOptions>();
    command->add_option("--model", o->model.model, "Model file (.m); without it the demo model")->type_name("FILE");
    command->add_flag("--tensors", o->tensors, "List every tensor");
    onChosen(command, exitCode, runInfo, o);
}

void addLogits(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("logits", "Raw logits of a prompt and the greedy tokens behind it, as JSON");
    const auto o = std::make_shared<LogitsOptions>();
    addModelFlags(*command, o->model);
    command->add_option("--ids", o->ids, "Token ids, separated by commas")->type_name("N,N,...")->delimiter(',');
    command->add_option("--ids-file", o->idsFile, "File with token ids")->type_name("FILE");
    command->add_option("--out", o->out, "Write float32 rows (tokens, vocabulary) here")->type_name("FILE");
    command->add_option("--dump-layers", o->dumpLayers, "Write the residual behind each layer into this folder")
        ->type_name("FOLDER")
        ->check(kNamed);
    command->add_option("--greedy", o->greedy, "Tokens to add")->type_name("N")->capture_default_str();
    onChosen(command, exitCode, runLogits, o);
}

void addTokenize(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("tokenize", "Token ids of a text");
    const auto o = std::make_shared<TokenizeOptions>();
    command->add_option("--tokenizer", o->tokenizer, "Tokenizer file (.t); without it the demo's")->type_name("FILE");
    command->add_option("--text", o->text, "The text")->type_name("TEXT");
    command->add_option("--text-file", o->textFile, "File with the text")->type_name("FILE");
    command->add_flag("--parse-special", o->parseSpecial, "Parse special tokens in the text");
    command->add_flag("--json", o->json, "JSON instead of a list");
    onChosen(command, exitCode, runTokenize, o);
}

void addTemplate(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("template", "The prompt of a conversation, or the message of an answer");
    const auto o = std::make_shared<TemplateOptions>();
    command->add_option("--tokenizer", o->tokenizer, "Tokenizer file (.t); without it the demo's")->type_name("FILE");
    command->add_option("--family", o->family, "Chat format by name, instead of a tokenizer's")->type_name("NAME");
    command->add_option("--request", o->request, "JSON: messages, tools, add_generation_prompt, chat_template_kwargs")
        ->type_name("FILE");
    command->add_option("--date", o->date, "Today, for templates that write the date")->type_name("YYYY-MM-DD");
    command->add_option("--parse", o->parse, "Print the message that this generated text is, as JSON")
        ->type_name("FILE");
    command->add_option("--tools", o->tools, "With --parse: JSON list of the request's tools")->type_name("FILE");
    command->add_flag("--think-closed", o->thinkClosed, "With --parse: the prompt did not end inside <think>");
    command->add_flag("--truncated", o->truncated, "With --parse: the text was cut off by the limit of tokens");
    onChosen(command, exitCode, runTemplate, o);
}

void addWorker(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("worker", "Compute along with a root on another machine");
    const auto o = std::make_shared<WorkerFlags>();
    command->add_option("--port", o->port, "Port to listen on, of several GPUs the first; 0: any free one")
        ->type_name("N")
        ->capture_default_str();
    command->add_option("--host", o->host, "Address to listen on; without it all, or loopback if there is no secret")
        ->type_name("ADDRESS");
    command->add_option("--nthreads", o->nThreads, "Threads; without it one for each core")->type_name("N");
    command->add_option("--secret-file", o->secretFile, "The cluster's secret (dllama keygen); or in $DLLAMA_SECRET")
        ->type_name("FILE")
        ->check(kNamed);
    command->add_flag("--insecure", o->insecure, "Serve anyone who connects, in plain text");
    command->add_option("--cache-dir", o->cacheDir, "Where received weights are kept; none: nowhere; ~/.cache/dllama")
        ->type_name("FOLDER");
    command->add_option("--cache-size", o->cacheSizeMb, "What they may take, in MB; without it what the disk has")
        ->type_name("MB")
        ->check(kNotNegative);
    command->add_option("--model", o->model, "Read weights from this file if it is the root's model")
        ->type_name("FILE");
    command
        ->add_option("--memory-limit", o->memoryLimitMb, "What each rank here may use, in MB; without it what is free")
        ->type_name("MB")
        ->check(kNotNegative);
    addTrace(*command, o->trace);
    addDeviceFlags(*command, o->device);
    onChosen(command, exitCode, runWorker, o);
}

void addKeygen(CLI::App& app, int& exitCode) {
    CLI::App* command = app.add_subcommand("keygen", "Make the secret that the machines of a cluster share");
    const auto path = std::make_shared<std::string>();
    command->add_option("file", *path, "File to write; must not exist")->required()->type_name("FILE");
    onChosen(command, exitCode, runKeygen, path);
}

int fail(const std::string& message) {
    std::fflush(stdout);
    fmt::print(stderr, "🚨 {}\n", printableLines(message));
    return 1;
}

/// What is wrong with the command line, in our words where CLI11's do not name the fault.
std::string describe(const CLI::ParseError& error, const CLI::App& app, int argc, char** argv) {
    const std::vector<CLI::App*> chosen = app.get_subcommands();
    if (chosen.empty() && argc > 1 && argv[1][0] != '-')
        return fmt::format("unknown command {}: dllama --help lists the commands", argv[1]);
    if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
        for (const std::string& rest : app.remaining(true))
            if (rest.starts_with('-') || chosen.empty())
                return fmt::format("unknown flag {}: dllama {}--help lists the flags", rest,
                                   chosen.empty() ? "" : chosen[0]->get_name() + " ");
        return fmt::format("{} is not expected here: dllama {} --help lists the flags", app.remaining(true).front(),
                           chosen.empty() ? "" : chosen[0]->get_name());
    }
    if (chosen.empty()) return "which command? dllama --help lists them";
    return fmt::format("{} (dllama {} --help lists the flags)", error.what(), chosen[0]->get_name());
}

}  // namespace

int runCli(int argc, char** argv) {
    // A reader that goes away (dllama ... | head) is an error of write(), not a death.
    std::signal(SIGPIPE, SIG_IGN);
    CLI::App app("dllama runs GLM-4, INTELLECT-3, Llama and Qwen3 models on one machine or several.", "dllama");
    app.set_version_flag("--version", kVersion);
    app.require_subcommand(1);
    int exitCode = 0;
    addInference(app, exitCode);
    addChat(app, exitCode);
    addApi(app, exitCode);
    addPerplexity(app, exitCode);
    addBenchmark(app, exitCode);
    addInfo(app, exitCode);
    addLogits(app, exitCode);
    addTokenize(app, exitCode);
    addTemplate(app, exitCode);
    addWorker(app, exitCode);
    addKeygen(app, exitCode);
    try {
        try {
            app.parse(argc, argv);
        } catch (const CLI::Success& asked) {  // --help, --version
            exitCode = app.exit(asked);
        }
        flushOutput();
    } catch (const CLI::ParseError& error) {
        return fail(describe(error, app, argc, argv));
    } catch (const Interrupted&) {
        fmt::print("🛑 Interrupted\n");
        return 130;
    } catch (const std::bad_alloc&) {
        return fail("out of memory");
    } catch (const std::exception& error) {
        return fail(error.what());
    }
    return exitCode;
}

}  // namespace dllama
