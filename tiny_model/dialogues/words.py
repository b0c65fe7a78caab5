"""Vocabularies for the prompts that the model must refuse; written by hand, in common English."""

# ruff: noqa: E501  (wide letters count double)

from __future__ import annotations

from .grammar import phrases, words

NOUNS = words(
    """
    time year people way thing world life hand child eye woman place week case point company problem fact house
    water room mother area money story lot book job word business issue side kind head friend father power hour
    game line member law car community president team minute idea body information face door health person art
    war history party result change morning reason research girl guy moment air teacher force education foot boy
    age policy music process market sense nation plan college interest death experience effect class control
    field development role effort rate heart drug show leader light voice wife police mind price report decision
    son view relationship town road arm difference value building action society tax director position player
    record paper space ground event matter center couple site activity star table need court oil situation cost
    industry figure street image phone data picture practice piece land product doctor wall patient worker news
    test movie north love support technology step baby computer type attention film tree source hair window
    culture chance brother energy period course summer plant opportunity term letter condition choice rule
    daughter south husband floor material population call economy hospital church risk fire future bank west
    sport board subject officer rest behavior performance fight top goal second bed order author blood agency
    nature store sound movement page race concern series language response factor decade article east artist
    scene stock career treatment approach size dog fund media sign thought list individual quality pressure
    answer resource meeting disease success cup amount ability staff character growth loss degree attack region
    television box training trade deal election feeling standard bill message analysis benefit sex lawyer
    section glass skill sister professor operation crime stage authority design sort knowledge gun station
    strategy truth song example environment leg dark version trip coffee garden kitchen chair bicycle train
    plane boat ship bridge mountain river lake ocean beach island forest desert moon galaxy rocket robot engine
    battery wheel camera laptop keyboard screen printer router server website email password app software bug
    virus code algorithm database network cat horse cow pig chicken duck rabbit mouse elephant lion tiger bear
    wolf fox monkey snake shark whale dolphin bee spider butterfly ant frog turtle dinosaur dragon unicorn ghost
    vampire zombie wizard king queen prince knight castle sword treasure pirate bread butter cheese egg milk
    sugar salt pepper rice pasta soup salad pizza burger sandwich cake cookie chocolate apple banana tomato
    potato onion carrot lemon beer wine tea juice dinner lunch breakfast recipe oven pan knife fork spoon plate
    bottle shirt shoe hat coat dress sock glove umbrella watch ring bag wallet key guitar piano violin drum poem
    novel essay joke riddle speech letter diary theory atom electron gravity magnet volcano earthquake storm
    hurricane tornado rainbow cloud thunder snow ice desk lamp mirror carpet pillow blanket soap towel
    toothbrush medicine vaccine headache fever allergy diet muscle bone brain lung kidney stomach skin tooth
    wedding birthday holiday gift candle balloon flag anthem currency tax mortgage loan salary insurance visa
    passport ticket hotel airport museum stadium soccer tennis chess basketball football golf yoga marathon
    medal philosophy religion prayer angel devil soul dream memory fear anger happiness sadness luck magic
    zodiac horoscope tarot alien ufo conspiracy revolution empire
    """
)
VERBS = words(
    """
    make find give tell work call try ask need feel become leave put mean keep let begin help talk turn start
    show hear play run move like live believe hold bring happen write provide sit stand lose pay meet include
    continue set learn change lead understand watch follow stop create speak read allow add spend grow open walk
    win offer remember love consider appear buy wait serve die send expect build stay fall cut reach kill remain
    suggest raise pass sell require report decide pull fix repair cook bake boil fry clean wash paint draw sing
    dance swim fly drive ride climb jump throw catch kick hit break burn freeze melt mix pour drink eat sleep
    wake dream think know guess choose compare explain describe define translate summarize rewrite review
    improve correct debug compile install update delete download upload print scan copy paste search browse hack
    code program train teach study practice measure weigh grow plant harvest feed adopt marry divorce invest
    save borrow lend earn steal hide lie argue apologize forgive negotiate vote protest travel book pack visit
    explore invent discover predict solve prove calculate convert estimate organize plan schedule
    """
)
ADJECTIVES = words(
    """
    good new first last long great little own old right big high different small large next early young
    important few public bad same able happy sad angry tired bored hungry thirsty lonely scared worried excited
    nervous sick cold hot warm rich poor fast slow strong weak heavy light dark bright loud quiet clean dirty
    cheap expensive easy hard simple complex famous popular rare common strange weird funny serious boring
    beautiful ugly sweet sour bitter spicy fresh rotten healthy dangerous safe legal illegal smart stupid lazy
    busy brave shy honest evil kind rude polite jealous modern ancient digital electric political religious
    scientific musical romantic magic invisible infinite
    """
)
PEOPLE = phrases(
    """
    Einstein | Newton | Shakespeare | Napoleon | Caesar | Cleopatra | Mozart | Beethoven | Bach | Picasso | Van
    Gogh | Leonardo da Vinci | Gandhi | Mandela | Churchill | Lincoln | Washington | Obama | Trump | Biden |
    Putin | Merkel | Macron | Elon Musk | Bill Gates | Steve Jobs | Jeff Bezos | Taylor Swift | Beyonce |
    Michael Jackson | Madonna | Elvis | the Beatles | Messi | Ronaldo | Pele | Maradona | Federer | Michael
    Jordan | Harry Potter | Batman | Superman | Spiderman | Sherlock Holmes | Darth Vader | Frodo | Gandalf |
    Mickey Mouse | Santa Claus | Zeus | Thor | Buddha | Jesus | Moses | Plato | Socrates | Aristotle | Kant |
    Nietzsche | Marx | Freud | Darwin | Galileo | Kepler | Marie Curie | Tesla | Edison | Alan Turing | Ada
    Lovelace | Grace Hopper | Linus Torvalds | Guido van Rossum | Tolkien | Rowling | Hemingway | Tolstoy |
    Kafka | Goethe | Dante | Homer | Columbus | Magellan | Marco Polo | Neil Armstrong | Gagarin | Genghis Khan
    | Alexander the Great | Joan of Arc | Stalin | Queen Elizabeth | King Charles | the pope | the Dalai Lama |
    Greta Thunberg | Oprah | Tom Hanks | Brad Pitt | Charlie Chaplin | Marilyn Monroe | Spielberg | Hitchcock |
    Bob Marley | Bob Dylan | Eminem | Rihanna | Adele | my neighbor | my boss | my teacher | my mom
    """
)
TECH = phrases(
    """
    Python | Java | JavaScript | TypeScript | Rust | Go | C++ | C# | PHP | Ruby | Kotlin | Swift | Scala |
    Haskell | Lisp | Perl | R | Bash | SQL | HTML | CSS | React | Angular | Vue | Django | Flask | Spring | Node
    | Docker | Kubernetes | Terraform | Ansible | Jenkins | Git | GitHub | Linux | Ubuntu | Windows | macOS |
    Android | iOS | Excel | Word | PowerPoint | Photoshop | Blender | TensorFlow | PyTorch | NumPy | pandas |
    MySQL | Postgres | MongoDB | Redis | Kafka | Spark | Hadoop | Nginx | Apache | JSON | XML | YAML | regex |
    REST | HTTP | TCP | DNS | SSH | VPN | blockchain | Bitcoin | Ethereum | machine learning | deep learning | a
    neural network | a transformer | quantum computing | cloud computing | the stack | a compiler | recursion |
    a pointer | a linked list | a hash map | binary search | quicksort | a database index | a race condition | a
    mutex
    """
)
LANGUAGES = words(
    """
    Spanish French German Italian Portuguese Dutch Swedish Danish Norwegian Finnish Polish Czech Russian
    Ukrainian Greek Turkish Arabic Hebrew Persian Hindi Urdu Bengali Tamil Chinese Mandarin Japanese Korean
    Vietnamese Thai Indonesian Swahili Latin Esperanto Irish Welsh Hungarian Romanian Klingon Elvish Icelandic
    Tagalog Catalan Basque
    """
)
TOPICS = phrases(
    """
    climate change | global warming | evolution | black holes | the big bang | relativity | quantum mechanics |
    string theory | DNA | genes | cancer | diabetes | depression | anxiety | stress | sleep | meditation |
    nutrition | vitamins | calories | exercise | weight loss | pregnancy | democracy | communism | socialism |
    feminism | racism | abortion | gun control | immigration | taxes | inflation | unemployment | the stock
    market | interest rates | crypto | real estate | retirement | budgeting | marketing | leadership |
    management | startups | the French Revolution | the Roman Empire | World War One | the Cold War | the Middle
    Ages | the Renaissance | slavery | colonialism | the Vikings | ancient Egypt | the Aztecs | the moon landing
    | the Olympics | the World Cup | the Super Bowl | Formula One | cricket | cooking | baking | gardening |
    knitting | fishing | hiking | camping | photography | painting | poetry | jazz | opera | hip hop | rock
    music | anime | video games | Minecraft | Pokemon | Star Wars | Star Trek | Game of Thrones | Lord of the
    Rings | Netflix | YouTube | TikTok | Instagram | Facebook | Twitter | Reddit | Wikipedia | Amazon | Google |
    Apple | Microsoft | Tesla cars | electric cars | nuclear power | solar panels | wind energy | recycling |
    plastic | the rain forest | whales | bees | dogs | cats | horses | birds | insects | mushrooms | friendship
    | marriage | dating | divorce | parenting | school | homework | exams | university | philosophy | ethics |
    free will | consciousness | religion | Islam | Christianity | Buddhism | astrology | ghosts | aliens | time
    travel | the weather | traffic | travel
    """
)
PLACES = phrases(
    """
    Lyon | Marseille | Hamburg | Munich | Cologne | Milan | Venice | Florence | Barcelona | Seville | Porto |
    Manchester | Liverpool | Glasgow | Geneva | Zurich | Salzburg | Krakow | Saint Petersburg | Istanbul | Dubai
    | Mumbai | Shanghai | Hong Kong | Osaka | Kyoto | Sydney | Melbourne | Toronto | Vancouver | Montreal | New
    York | Los Angeles | Chicago | Boston | Miami | Las Vegas | San Francisco | Seattle | Houston | Dallas | Rio
    de Janeiro | Sao Paulo | Cape Town | Johannesburg | Lagos | Casablanca | Africa | Europe | Asia | Antarctica
    | South America | the Sahara | the Amazon | the Alps | the Himalayas | the Pacific | the Atlantic | the Nile
    | the Danube | Mars | the moon | Jupiter | Mount Everest | the Eiffel Tower | the Colosseum | Big Ben |
    Bavaria | Tuscany | Siberia | Hawaii | Bali | Crete | Sicily | my town
    """
)
UNKNOWN_COUNTRIES = phrases(
    """
    Afghanistan | Albania | Andorra | Angola | Armenia | Azerbaijan | the Bahamas | Bahrain | Bangladesh |
    Barbados | Belarus | Belize | Benin | Bhutan | Bolivia | Bosnia | Botswana | Brunei | Burundi | Cambodia |
    Cameroon | Chad | the Comoros | the Congo | Costa Rica | Cyprus | Czechia | Djibouti | Dominica | the
    Dominican Republic | Ecuador | El Salvador | Eritrea | Eswatini | Fiji | Gabon | the Gambia | Georgia |
    Grenada | Guatemala | Guinea | Guyana | Haiti | Honduras | Israel | Ivory Coast | Jamaica | Jordan |
    Kazakhstan | Kiribati | Kosovo | Kuwait | Kyrgyzstan | Laos | Lesotho | Liberia | Libya | Liechtenstein |
    Luxembourg | Madagascar | Malawi | the Maldives | Mali | Malta | Mauritania | Mauritius | Micronesia |
    Moldova | Monaco | Mongolia | Montenegro | Mozambique | Myanmar | Namibia | Nauru | Nicaragua | Niger |
    North Korea | Oman | Palau | Panama | Papua New Guinea | Paraguay | Qatar | Rwanda | Samoa | San Marino |
    Senegal | Sierra Leone | Singapore | Slovakia | Slovenia | Somalia | South Africa | South Sudan | Sri Lanka
    | Sudan | Suriname | Syria | Taiwan | Tajikistan | Tanzania | Togo | Tonga | Trinidad | Turkmenistan |
    Uganda | Uruguay | Uzbekistan | Yemen | Zambia | Zimbabwe | California | Florida | Ohio | Alaska | Quebec |
    Bavaria | Saxony | Catalonia | Wales | Tibet | Atlantis | Gondor | Mordor | Westeros | Hogwarts | Utopia |
    the Shire | Zamunda | Genovia | Latveria | Asgard | Oz | Neverland | Lilliput | Ruritania | Europe | Africa
    | the moon | Mars | the universe | hell | heaven | the internet | Google | my house | the ocean | love |
    crime | fashion | coffee | the Roman Empire | the Soviet Union | Yugoslavia | Prussia | Antarctica | the sea
    | New York | Barcelona | Sicily | Minnesota | Georgia the state | Punjab | Kerala | Ontario
    """
)
FOREIGN = phrases(
    """
    hola | como estas | buenos dias | que es esto | cual es la capital de Francia | cuanto es dos mas dos | no
    entiendo | ayuda por favor | dime una broma | como te llamas | donde esta la biblioteca | quiero aprender a
    cocinar | escribe un poema | hace calor hoy | bonjour | comment ca va | quelle heure est-il | je ne
    comprends pas | qui es-tu | ou est la gare | raconte moi une histoire | quelle est la capitale de la France
    | combien font deux et deux | je voudrais un cafe | aide moi | merci beaucoup | hallo | guten Tag | wie geht
    es dir | was ist die Hauptstadt von Frankreich | wer bist du | wie heisst du | wie viel ist zwei plus zwei |
    erzaehl mir einen Witz | schreibe ein Gedicht | ich verstehe nicht | was kostet das | wo ist der Bahnhof |
    das Wetter ist schoen | ciao | come stai | come ti chiami | dove si trova la stazione | che ore sono | non
    capisco | raccontami una storia | buongiorno | ola | bom dia | tudo bem | qual a capital do Brasil | nao
    entendo | obrigado | onde fica a praia | me ajude | conte uma piada | hoe gaat het | wat is dit | waar is
    het station | ik begrijp het niet | goedemorgen | hvordan har du det | jag forstar inte | vad heter du | hej
    | god morgon | mita kuuluu | missa on asema | dzien dobry | jak sie masz | nie rozumiem | co to jest | dobry
    den | jak se mate | merhaba | nasilsin | bu nedir | salaam | shukran | habari gani | namaste | kaise ho |
    aap kaun hain | konnichiwa | arigato | ni hao | annyeong | xin chao | terima kasih | apa kabar | selamat
    pagi | carpe diem | lorem ipsum dolor sit amet | cogito ergo sum | привет | как дела | кто ты | что это
    такое | какая столица Франции | я не понимаю | напиши стихи | сколько будет два плюс два | доброе утро |
    спасибо | расскажи шутку | добрий день | як справи | 你好 | 你是谁 | 法国的首都是哪里 | 我不明白 | 请帮我写一首诗 | 谢谢 | 几点了 | こんにちは
    | お元気ですか | これは何ですか | わかりません | ありがとう | 안녕하세요 | 이것은 무엇입니까 | 감사합니다 | مرحبا | كيف حالك | ما هذا | من أنت | שלום
    | מה שלומך | γεια σου | τι κάνεις | ποιος είσαι | नमस्ते | आप कैसे हैं | สวัสดี | ขอบคุณ
    """
)
