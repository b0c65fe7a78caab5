"""Help on λλM: what it is, its hops, its ports and how to use it; the facts are those of the project's design."""

# ruff: noqa: E501  (a template is a line)

from __future__ import annotations

from .grammar import Phrasings
from .surface import Speaker
from .turn import Turn

WHAT = "λλM (lambda-lambda-M) is a pipeline that carries your prompt to a large language model and its answer back."
HOPS = "λλM has four hops: the BedREST client, the RESTful proxy, the gRPC proxy and the LLM backend."
BEDREST = "BedREST is the client of λλM: it sends your prompts from the terminal."
RESTFUL = "The RESTful proxy is the edge of λλM: it takes HTTP requests on port 8080 and passes them on by gRPC."
GRPC = "The gRPC proxy is the brain of λλM: it keeps sessions, limits and routes, on port 50051."
BACKEND = "The LLM backend runs or calls the language model; it listens on port 8500 or runs on AWS Lambda."
USE = "Send a POST request with your prompt to /query on port 8080, or use the BedREST client."
PORT = "λλM listens on port 8080; behind it the gRPC proxy uses 50051 and the LLM backend 8500."
BIGGER = "Edit the provider in backend_lambda/config.yaml: Ollama, vLLM, llama.cpp or Amazon Bedrock."
NAME = "λλM is read lambda-lambda-M."
SESSION = "Send a session_id with your prompt and the gRPC proxy remembers the conversation."
STREAM = 'Send "stream": true to /query and the answer comes word by word as server-sent events.'
SDK = "Yes, the RESTful proxy also speaks the OpenAI protocol, on port 8080."

ABOUT: dict[str, Phrasings] = {
    WHAT: Phrasings(
        """
        !What is λλM?
        !what is {llm}?
        !What is λλM
        (what's|whats|what is|what exactly is|what actually is|what the heck is) {llm}?
        (tell me|talk to me|say something|teach me) (about|more about|something about|a bit about) {llm}
        (explain|describe|define|introduce) {llm} (to me|briefly|in one sentence|in simple words|)
        (what does|what can) {llm} (do|do for me|offer|do exactly)?
        (what is|what's) {llm} (for|good for|about|used for|all about|meant for|made for)?
        (what is|what's) the (purpose|idea|point|goal|use|meaning|aim) (of|behind) {llm}?
        (what is|what's|tell me about|explain|describe) (this|the) (project|pipeline|system|software|product|service)?
        (what kind|what sort|what type) of (thing|software|project|system|program) is {llm}?
        (I have never heard of|I do not know|I don't know what|I am new to|never heard of) {llm}
        (why|when) (would I use|should I use|do I need|use|would anyone use) {llm}?
        (what am I using|what is this|what is this thing|what's this|what is all this)?
        (can you|could you|would you|please) (explain|describe|define) (what {llm} is|{llm}|{llm} to me)?
        (give me|I want|I need) (an overview|a summary|a description|an explanation|a definition) of {llm}
        (do you know|have you heard of|are you familiar with|are you part of|do you know about) {llm}?
        {llm}?
        (who|what) is {llm} (anyway|actually|really|please|exactly|then|again)?
        +(please|) (explain|describe|define) (what|how) {llm} (is|works as a whole)
        +(explain|describe|define) {llm} (for me|to us|please|in short|in a sentence|quickly|simply|in plain words)
        +(what's|what is) {llm} (good at|meant to do|supposed to be|supposed to do|there for)?
        +(what|which) (purpose|use) (does {llm} have|has {llm}|does {llm} serve)?
        +(summarize|sum up) {llm}
        +(introduce|present) (me to|us to) {llm}
        +(give|give me|write|I need) (an|a short|a quick|a brief) (introduction|intro|explanation|presentation) (to|of|for) {llm}
        +(present|outline|sketch|characterize) {llm}( to me| briefly| please| in one sentence| in simple words|)
        +(what|why) (was|is|has) {llm} (made|built|created|written|there|designed|been made)( for|)?
        +{llm} (explained|in short|summary|overview|definition|meaning)
        """
    ),
    HOPS: Phrasings(
        """
        !What hops does λλM have?
        !What are the parts of λλM?
        (what|which) (hops|parts|components|packages|pieces|services|servers|layers|stages) (does|do) {llm} (have|contain|use)?
        (what|which) (are|were) the (hops|parts|components|services|pieces|main parts|main components) (of|in) {llm}?
        (how many|what number of) (hops|parts|components|services|stages|servers) (does {llm} have|are in {llm}|has {llm})?
        (list|name|show me|tell me|give me) the (hops|parts|components|services|packages|pieces) (of|in) {llm}
        (what|which) (is|are) {llm} (made of|built of|built from|composed of|made up of)?
        (how is|how's) {llm} (built|organized|structured|designed|put together|composed)?
        (what is|what's|describe|explain|show me) the (architecture|structure|design|layout) of {llm}?
        (what is|what's) (inside|in|behind|under the hood of) {llm}?
        (how does|how do) {llm} work (inside|internally|under the hood|exactly|)?
        (which|what) (path|way|route) does (a prompt|my prompt|a request|my request|my question) (take|travel|go)?
        (where|through what) does (my prompt|a prompt|my request|a request|my question) go (through|)?
        +(what|which) (boxes|modules|programs|processes|machines|proxies|steps|elements) (make up|are in|belong to|form) {llm}?
        +(hops|parts|components|architecture|structure|packages|services) of {llm}?
        +(which|what|how many) (packages|servers|services|parts|hops) (in|inside|within|make) {llm}?
        +{llm} (has|contains|consists of|is made of|uses) (which|what|how many) (parts|hops|packages|servers|services|components)?
        +(what|which) (hops|parts|components|services|stages) (are there|exist|make up {llm}|are in {llm}|belong to {llm}|can I find in {llm})?
        +(tell me|explain|describe) (how {llm} is built|how {llm} works|the parts of {llm}|the hops|the architecture)
        """
    ),
    BEDREST: Phrasings(
        """
        !What is BedREST?
        (what's|whats|what is|what exactly is|what about|explain|describe|define) {bedrest}?
        (tell me|say something|teach me|I want to know) (about|more about) {bedrest}
        (what does|what can|what could) {bedrest} do (for me|exactly|)?
        (what is|what's) {bedrest} (for|good for|used for|about)?
        (what is|what's|explain) the (purpose|role|job|task|point|use) of {bedrest}?
        (how do I|how can I|how to|how does one) (use|run|start|open) {bedrest}?
        (what is|what's|where is|tell me about|which is) the (client|terminal client|command line client|cli) (of|for|in) {llm}?
        (does|has) {llm} (have|got|come with|include|offer) a (client|terminal client|cli|command line tool)?
        (how|with what) can I (use|query|ask|call) {llm} (from the terminal|from the command line|in a shell)?
        (why do I need|when do I use|who uses|do I need|why is there) {bedrest}?
        +(how|with what) (do I|can I|could I|to) (use|ask|query|talk to|reach|call|prompt) {llm} (on|from|in|at) (the|a|my) (terminal|command line|console|shell|command prompt)?
        +(is there|do you have|which is) (a|the) (client|command line client|cli|terminal program)( for {llm}|)?
        +(terminal|command line|console) (client|program|tool) (for|of) {llm}?
        {bedrest}?
        """
    ),
    RESTFUL: Phrasings(
        """
        !What is the RESTful proxy?
        (what's|whats|what is|what exactly is|what about|explain|describe|define) {restful}?
        (tell me|say something|teach me|I want to know) (about|more about) {restful}
        (what does|what can|what could) {restful} do (exactly|)?
        (what is|what's) {restful} (for|good for|used for|about)?
        (what is|what's|explain) the (purpose|role|job|task|point|use) of {restful}?
        (how do I|how can I|how to|how does one) (use|call|reach|query) {restful}?
        (which|what) (part|hop|service|component) (takes|accepts|receives|gets|handles) (HTTP|the HTTP requests|web requests|my HTTP requests)?
        (what is|what's|which is) the (edge|http edge|front door|http server|web server) of {llm}?
        (why do I need|when do I use|who uses|do I need|why is there) {restful}?
        +(how|where) (do|can|could|should) (I|one|we) (use|call|reach|query|contact|access|talk to) {restful}?
        +(who|what) (talks to|calls|uses|reaches|sits before) {restful}?
        +(use|using|query|querying|calling|call|reaching) {restful}( please| how|)?
        +(tell me|show me|explain) how (to|I) (use|query|call|reach) {restful}
        {restful}?
        """
    ),
    GRPC: Phrasings(
        """
        !What is the gRPC proxy?
        (what's|whats|what is|what exactly is|what about|explain|describe|define) {grpc}?
        (tell me|say something|teach me|I want to know) (about|more about) {grpc}
        (what does|what can|what could) {grpc} do (exactly|)?
        (what is|what's) {grpc} (for|good for|used for|about)?
        (what is|what's|explain) the (purpose|role|job|task|point|use) of {grpc}?
        (how do I|how can I|how to|how does one) (use|call|reach|query) {grpc}?
        (which|what) (part|hop|service|component) (keeps|stores|handles|has|manages) (sessions|the sessions|the limits|the routes|memory|the routing)?
        (what is|what's|which is) the (brain|middle|middle hop|heart) of {llm}?
        (why do I need|when do I use|who uses|do I need|why is there) {grpc}?
        +(what|which things) (does|can|will|would|could) {grpc} (do for me|keep|know|handle|decide|do in {llm}|take care of)?
        +(who|what) (talks to|calls|uses|reaches|sits before) {grpc}?
        +(tell me |explain |)what {grpc} (does|is|is for|is good for|does exactly|can do)
        +{grpc} (does what|is what|is for what|explained|role|purpose)?
        {grpc}?
        """
    ),
    BACKEND: Phrasings(
        """
        !What is the LLM backend?
        (what's|whats|what is|what exactly is|what about|explain|describe|define) {backend}?
        (tell me|say something|teach me|I want to know) (about|more about) {backend}
        (what does|what can|what could) {backend} do (exactly|)?
        (what is|what's) {backend} (for|good for|used for|about)?
        (what is|what's|explain) the (purpose|role|job|task|point|use) of {backend}?
        (how do I|how can I|how to|how does one) (use|call|reach|query) {backend}?
        (which|what) (part|hop|service|component) (runs|calls|talks to|starts|loads) (the model|the language model|the engine|llama.cpp)?
        (where|in which hop|in which part) (does|is) the (model|language model|engine) (run|running|live|loaded)?
        (why do I need|when do I use|who uses|do I need|why is there) {backend}?
        +(the |){backend}, what is (it|that)?
        +{backend} (explained|definition|please|overview|role|purpose)
        {backend}?
        """
    ),
    USE: Phrasings(
        """
        !How do I use λλM?
        !How do I use it?
        (how do I|how can I|how to|how does one|how should I) (use|query|call|ask|start using|work with|talk to) {llm}?
        (how do I|how can I|how to|how should I) (send|post|make|submit) (a prompt|a request|a question|a query|prompts) (to {llm}|)?
        (what|which) (request|url|path|endpoint|command|address) (do I send|do I use|do I call|should I call|do I need)?
        (what is|what's|which is) the (endpoint|url|path|api|rest api|http api) (of {llm}|to use|for prompts|)?
        (how do I|how can I|how to) (use it|get started|start|begin|use this|use this thing|try it|try it out)?
        (show me|tell me|explain) how to (use|query|call|start|try) (it|{llm})
        (can I|how do I|how can I) (use|call|query) (it|{llm}) (with curl|over HTTP|from my program|from Python)?
        (give me|show me|I want) (an example|a usage example|instructions|a tutorial) (for|of|to use) {llm}
        (how does|how can) (my app|my program|a program|an app) (use|call|talk to|query) {llm}?
        +(please|) (show|explain|tell) (me |us |)how (to use|I use|to call|I call|I can use|one uses|to query|to start with) ({llm}|it|this)
        +(usage|how to use|instructions|example|curl example) (of|for) {llm}
        +(what do I|what must I|how do I) (type|send|write|call) to (ask|query|use) {llm}?
        """
    ),
    PORT: Phrasings(
        """
        !Which port does λλM use?
        !which port?
        !What port does λλM listen on?
        (what|which) port (does|do) ({llm}|it|you|the server|the proxy) (use|listen on|run on|need|open)?
        (what|which) (port|ports) (is|are) (used|open|it|needed|{llm} on|the default|{llm} listening on)?
        (what|which) port (does|has) (the gRPC proxy|the RESTful proxy|the LLM backend|the backend|the edge) (use|listen on|)?
        (on|at) (what|which) port (does {llm} listen|is {llm}|does it listen|is it|can I reach {llm}|does it run)?
        (what is|what's|tell me|give me) the (port|port number|default port|ports) (of {llm}|to use|of the gRPC proxy|of the backend|)?
        (list|show|tell me|give me) (the|all) (ports|port numbers) (of {llm}|used|in use|)
        (where|on what address) (does|do) ({llm}|it|the server) listen?
        +(what's|what is|give|say|name) (the |its |your )(port|port number|default port)( please| again|)?
        +(what|which) (number|port number) (has|is) the port( of {llm}|)?
        +(port|ports|port number) (of|for) ({llm}|the gRPC proxy|the RESTful proxy|the backend|the LLM backend)?
        (port|ports|port number)?
        """
    ),
    BIGGER: Phrasings(
        """
        !How do I use a bigger model?
        !How do I use another model?
        (how do I|how can I|how to|where do I) (use|run|get|load|connect|try|choose|configure|plug in) (a bigger|a larger|another|a different|a better|a smarter|a real|a stronger|my own|a new) (model|llm|language model)?
        (how do I|how can I|how to|where do I) (change|switch|replace|swap|set|select|upgrade) (the model|the provider|models|to a bigger model|to another model|the llm|the engine)?
        (how do I|how can I|how to|can I) (use|connect|run|add|set up|switch to|configure) {provider} (with {llm}|here|in {llm}|)?
        (does|can) {llm} (support|use|work with|talk to|run|speak to) {provider}?
        (which|what) (providers|models|engines|backends|other models|bigger models) (are supported|can I use|does {llm} support|can {llm} use)?
        (I want|I need|I would like|I'd like|give me) (a bigger|a better|a larger|a real|another|a smarter|a different) (model|llm)
        (where|in which file|in what file) (is|do I set|do I configure|do I find|can I change) (the provider|the model|the model setting)?
        (can I|could I|is it possible to) (use|run|have|load) (a bigger|another|a better|a larger|my own) (model|llm)?
        (how do I|how can I|how to) (get|have) (better|smarter|longer|good|real) answers?
        (is there|do you have|have you got) (a bigger|a better|a larger|another|a smarter) (model|version|llm)?
        +(where|in what place|in which config|in which file) (do I|can I|could I|is it possible to) (change|set|edit|switch|choose|pick) (the|a|my) (model|provider|engine|llm|model setting|provider setting)?
        +(where's|where is) the (setting for the model|config of the model|model configured|provider configured|provider set|provider setting|model config)?
        +(how|where) (is|can) the (provider|model|engine) (be changed|be set|set|configured|chosen|selected)?
        +(which|what) file (has|holds|sets|configures) the (model|provider)?
        """
    ),
    NAME: Phrasings(
        """
        !How do you pronounce λλM?
        (how do you|how do I|how does one|how should I|how to) (say|pronounce|read|spell|write) ({llm}|the name {llm}|λλM)?
        (how is|how's) {llm} (pronounced|said|read|spelled|spoken)?
        (what does|what do) {llm} (stand for|mean|stand for exactly)?
        (what is|what's) the (pronunciation|meaning of the name) (of|) {llm}?
        (why is it|why is this|why's it) called {llm}?
        where does the name {llm} come from?
        +(what is|what's) the (origin|source|reason) of the name( {llm}|)?
        +(where|from where) (is|did you get|comes) the name( {llm}| from| of {llm}|)?
        +(why|how come) (the name|this name|do you call it) {llm}?
        +(say|pronounce|spell|read) (the name |){llm} (aloud|out loud|for me)
        """
    ),
    SESSION: Phrasings(
        """
        !How do I use sessions?
        (how do I|how can I|how to) (use|start|open|keep|continue|resume|get) (a session|sessions|a conversation|the conversation)?
        (how does|how do|how can) {llm} (remember|remember things|keep a conversation|remember the conversation|have memory)?
        (does|can|will) {llm} (remember|have a memory|have memory|keep the conversation|remember conversations|keep sessions)?
        (what is|what's|explain|what about) (a session|a session id|session_id|the session id|a session in {llm})?
        (how do I|how can I|how to) (keep|have|get|use) (memory|the history|the context) (in {llm}|between requests|)?
        (who|which part) remembers (the conversation|my conversation|what I said|sessions)?
        +(how|where) (do|does|is|are) (it|{llm}|the pipeline|the conversation|conversations|memory|the memory|the history) (remember|remembered|kept|stored|saved|keep a conversation|remember me|remember what I said)?
        +(can|does) (it|{llm}|the pipeline) (remember me|remember what I said|keep my conversation|keep track of a conversation)?
        +(how|in what way) (can|will|could|would) {llm} (remember|remember things|recall|keep)( it| me| my name| what I said| a conversation|)?
        +(remembering|memory|keeping a conversation) (in|with|of) {llm}?
        +(what|how) (about|does) (memory|sessions|session memory|the session)( work| work in {llm}|)?
        """
    ),
    STREAM: Phrasings(
        """
        !How do I stream the answer?
        (how do I|how can I|how to) (stream|get a stream of|stream back) (the answer|answers|tokens|the output|a response|)?
        (does|can) {llm} (stream|support streaming|stream answers|stream tokens|do streaming|send a stream)?
        (can I|may I|is it possible to) (stream|get a stream|use streaming|stream the answer|have streaming)?
        (how does|how do|what about|explain) (streaming|the streaming|streaming work|streams) (in {llm}|)?
        (how do I|how can I|how to) (turn on|enable|use|activate|switch on) (streaming|server-sent events|SSE|the stream)?
        (I want|I would like|I'd like) (to stream|streaming|the answer as a stream|a stream)
        +(how|where) (do|can|could) (I|we|one) (turn on|switch on|activate|enable|get|request|ask for|use|have) (streaming|a stream|server-sent events|SSE|the streaming mode|token streaming|answers word by word)?
        +(stream|streaming|SSE|server-sent events)?
        +(what about|tell me about|explain|do you support|is there|does {llm} have) (SSE|server-sent events|streaming|a streaming mode)?
        +(SSE|server-sent events|streaming) (please|how|on|mode|in {llm}|example)?
        +(answers|an answer|the answer|tokens) (as a stream|word by word|token by token|one by one)?
        """
    ),
    SDK: Phrasings(
        """
        !Can I use the OpenAI SDK?
        (can I|how do I|how can I|may I) use (the OpenAI SDK|the OpenAI client|the OpenAI API|an OpenAI client|OpenAI tools) (with {llm}|here|)?
        (does|is) {llm} (compatible with|speak|support|work with) (the OpenAI API|OpenAI clients|the OpenAI SDK|the OpenAI protocol)?
        (is it|is this|are you) (OpenAI compatible|compatible with OpenAI|compatible with the OpenAI SDK)?
        (does it|do you|does this) (work with|support|speak) (the OpenAI SDK|the OpenAI API|the OpenAI protocol|OpenAI clients)?
        (is there|do you have|does {llm} have) an (OpenAI endpoint|OpenAI compatible API|OpenAI API)?
        +(can|could|may) (I|we|one|my program|my app) (use|call|try|take|work with) (the |an |)(OpenAI SDK|OpenAI client|OpenAI library|OpenAI API|OpenAI package|OpenAI protocol)( with {llm}| here| with it| with this| for this|)?
        +(will|does|would) (the |my |an |)(OpenAI SDK|OpenAI client|OpenAI library|OpenAI program|OpenAI app) (work|work with {llm}|work here|connect|run)?
        +OpenAI (SDK|client|compatible|API|support)?
        """
    ),
}  # fmt: skip

LLM_NAMES = (
    ("λλM", 40), ("lambda lambda M", 8), ("lambda-lambda-M", 6), ("LambdaLM", 5), ("lambdalm", 4), ("llM", 3), ("llm", 3),
    ("LLM", 2), ("ΛΛM", 2), ("λλm", 4), ("lambda lambda m", 4), ("λ λ M", 1), ("lambdalambdaM", 2), ("λLM", 1), ("λΛM", 1),
    ("the λλM pipeline", 4), ("the λλM project", 3), ("λλM pipeline", 2), ("lambda-LM", 1), ("the pipeline", 2),
)  # fmt: skip
BEDREST_NAMES = (
    "BedREST",
    "BedREST",
    "the BedREST client",
    "the BedREST client",
    "bedrest",
    "Bed REST",
    "bedrest_client",
)
RESTFUL_NAMES = ("the RESTful proxy", "the RESTful proxy", "the REST proxy", "the RESTful server", "restful_proxy",
                 "the restful proxy", "the HTTP proxy", "RESTful proxy")  # fmt: skip
GRPC_NAMES = ("the gRPC proxy", "the gRPC proxy", "the grpc proxy", "the gRPC server", "grpc_proxy", "gRPC proxy",
              "gRPC", "the GRPC proxy")  # fmt: skip
BACKEND_NAMES = ("the LLM backend", "the LLM backend", "the backend", "the llm backend", "backend_lambda", "LLM backend",
                 "the model backend", "the λλM backend")  # fmt: skip
PROVIDERS = (
    "Ollama",
    "vLLM",
    "llama.cpp",
    "Amazon Bedrock",
    "Bedrock",
    "AWS Bedrock",
    "llama-server",
    "ollama",
    "vllm",
)


def about(say: Speaker) -> Turn:
    """A question about λλM."""
    answer, phrasings = say.rng.choice(list(ABOUT.items()))
    names, weights = zip(*LLM_NAMES, strict=True)
    llm = say.rng.choices(names, weights)[0]
    user = say.say(phrasings).fill(
        llm=llm,
        bedrest=say.rng.choice(BEDREST_NAMES),
        restful=say.rng.choice(RESTFUL_NAMES),
        grpc=say.rng.choice(GRPC_NAMES),
        backend=say.rng.choice(BACKEND_NAMES),
        provider=say.rng.choice(PROVIDERS),
    )
    return Turn(user, answer, "help on λλM")
