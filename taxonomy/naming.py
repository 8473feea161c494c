"""Display names of nodes: everyday words for synsets, made unique within a tree."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from taxonomy import wordnet

_UNSAID_TABLE = """
n00001740 entity                    n00001930 physical entity           n00002137 abstraction
n00002452 thing                     n00002684 object                    n00003553 whole
n00003993 congener                  n00004258 living thing              n00004475 organism
n00005787 benthos                   n00005930 dwarf                     n00006024 heterotroph
n00007347 causal agent              n00019128 natural object            n00019613 substance
n00020090 substance                 n00020827 matter                    n00021939 artifact
n00022903 article                   n00023100 psychological feature     n00023271 cognition
n00024264 attribute                 n00024720 state                     n00026192 feeling
n00027167 location                  n00027807 shape                     n00028270 time
n00029378 event                     n00029677 process                   n00030358 act
n00031264 group                     n00031921 relation                  n00033020 communication
n00033615 measure                   n00037396 action                    n00407535 activity
n01317541 domestic animal           n01428580 soft-finned fish          n01438208 cypriniform fish
n01439121 cyprinid                  n01466257 chordate                  n01471682 vertebrate
n01473806 aquatic vertebrate        n01480516 cartilaginous fish        n01482071 elasmobranch
n01524359 passerine                 n01661592 anapsid                   n01661818 diapsid
n01662622 chelonian                 n01674216 saurian                   n01676755 iguanid
n01687665 agamid                    n01696633 crocodilian reptile       n01727646 colubrid snake
n01741562 constrictor               n01745125 elapid                    n01767661 arthropod
n01789386 gallinaceous bird         n01802721 phasianid                 n01825930 coraciiform bird
n01838038 piciform bird             n01845477 anseriform bird           n01871543 prototherian
n01871875 monotreme                 n01873982 metatherian               n01886756 placental
n01905661 invertebrate              n01909422 coelenterate              n01914163 anthozoan
n01942177 gastropod                 n01976146 decapod crustacean        n02055658 sphenisciform seabird
n02057731 pelagic bird              n02134971 viverrine                 n02152881 prey
n02152991 game                      n02171453 lamellicorn beetle        n02171869 scarabaeid beetle
n02188699 dipterous insect          n02206270 hymenopterous insect      n02226183 orthopterous insect
n02231052 phasmid                   n02232951 dictyopterous insect      n02246011 homopterous insect
n02268148 odonate                   n02274024 lepidopterous insect      n02279637 danaid
n02316707 echinoderm                n02323449 lagomorph                 n02323902 leporid
n02373336 odd-toed ungulate         n02394477 even-toed ungulate        n02399000 ruminant
n02401031 bovid                     n02441326 musteline mammal          n02453108 pachyderm
n02453611 edentate                  n02470899 anthropoid ape            n02480153 great ape
n02503127 proboscidean              n02507649 procyonid                 n02514825 bony fish
n02528163 teleost fish              n02552171 spiny-finned fish         n02554730 percoid fish
n02638596 ganoid                    n02756098 attire                    n03050026 cloth covering
n03076708 commodity                 n03078287 communication system      n03093574 consumer goods
n03100490 conveyance                n03122748 covering                  n03154073 cutter
n03154446 cutting implement         n03169390 decoration                n03247620 drug
n03248958 drug of abuse             n03257877 durables                  n03297735 establishment
n03405265 furnishing                n03546340 housing                   n03563967 implement
n03575240 instrumentality           n03736970 mechanical device         n03738472 mechanism
n03748162 mercantile establishment  n03839993 obstruction               n03863923 overgarment
n03892891 part                      n03932203 piece                     n03932670 piece of cloth
n03953020 place of business         n04014297 protective covering       n04078574 reservoir
n04081844 restraint                 n04170037 self-propelled vehicle    n04188643 sheet
n04359589 support                   n04361095 supporting structure      n04377057 system
n04453910 top                       n04470953 transducer                n04531098 vessel
n04550840 ware                      n04571292 weight                    n04580493 white goods
n06254669 medium                    n06263369 press                     n06263609 print media
n07555863 food                      n07556970 course                    n07566340 foodstuff
n07566863 starches                  n07570720 nutriment                 n07705711 produce
n07710007 solanaceous vegetable     n07713395 cruciferous vegetable     n07809096 ingredient
n07809368 flavorer                  n09366317 natural elevation         n11552386 spermatophyte
n11665372 angiosperm                n11675842 reproductive structure    n13086908 plant part
n13087625 plant organ               n13134947 fruit                     n13809207 part
n14580897 material                  n14778436 agent                     n14939900 fluid
n14940386 liquid                    n15046900 solid
"""

# Synsets whose words people do not use for what they see; they never name a class or stand in a tree.
UNSAID = frozenset(re.findall(r"n\d{8}", _UNSAID_TABLE))

# What people say instead of the first lemma. Leaves keep their first lemma.
LAY_WORDS = {
    wordnet.ROOT: "thing",
    "n01844917": "water bird",
    "n01525720": "songbird",
    "n02370806": "hoofed animal",
    "n02062017": "sea mammal",
    "n02083346": "dog or wild canine",
    "n02120997": "cat or wild feline",
    "n03125870": "boat or aircraft",
    "n03278248": "electronics",
    "n03405725": "furniture",
    "n03502509": "hat or headwear",
    "n03699975": "machine",
    "n04263760": "light",
    "n07705931": "fruit",
    "n00021265": "food",
    "n09287968": "landscape",
    "n07881800": "drink",
    "n03414162": "game equipment",
    "n04530566": "ship or boat",
}


@dataclass(frozen=True, slots=True)
class NamedNode:
    """A node that needs a display name: its wanted name, whether it is a class (or leaf), and its tree parent."""

    id: str
    name: str
    is_class: bool
    parent: int  # position in the list, -1 for the root; parents first


def word(synset_id: str) -> str:
    """Return the everyday word for a synset: from `LAY_WORDS`, else its first lemma."""
    return LAY_WORDS.get(synset_id) or wordnet.known(synset_id).lemmas[0]


def unique_names(nodes: Sequence[NamedNode]) -> list[str]:
    """Give every node a name no other node has, also when case is ignored.

    Of classes that want the same name, one that lies above all the rest keeps it; each other one adds the nearest
    ancestor in the tree that the rest do not share, as in "crane (bird)"; where there is none, the nearest in
    WordNet, then another lemma, then the id. Names with "or" are not added. Then a node that is no class, and wants a
    name that is taken, takes its next free lemma, or adds an ancestor in the same way; where it has none of its own,
    the class adds one.
    """
    names = [node.name for node in nodes]
    inner = [i for i, node in enumerate(nodes) if not node.is_class]
    for same in _clashes(names, [i for i, node in enumerate(nodes) if node.is_class]):
        for i in same:
            names[i] = _told_apart(i, same, nodes)
    taken = Counter(name.lower() for name in names)
    for i in inner:
        wanted = [names[i], *_lemmas(nodes[i].id), _told_apart(i, [i], nodes)]
        taken[names[i].lower()] -= 1
        names[i] = next((name for name in wanted if not taken[name.lower()]), names[i])
        taken[names[i].lower()] += 1
    for same in _clashes(names, range(len(names))):
        for i in same[1:]:
            apart = _told_apart(i, same, nodes)
            free = apart.lower() not in {name.lower() for name in names}
            names[i] = apart if free else f"{nodes[i].name} ({nodes[i].id})"
    return names


def either(words: Iterable[str]) -> str:
    """Join words as English does: "a", "a or b", "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _told_apart(i: int, same: Sequence[int], nodes: Sequence[NamedNode]) -> str:
    name = nodes[i].name
    lines = {j: _line(j, nodes) for j in same}
    others = [j for j in same if j != i]
    if others and all(i in lines[j] for j in others):
        return name
    shared = {a for j in others for a in _synsets_above(nodes[j].id)}
    own = sorted(_synsets_above(nodes[i].id) - shared - UNSAID, key=lambda a: (-wordnet.depth(a), a))
    hints = [nodes[above].name for above in lines[i][1:-1] if not any(above in lines[j] for j in others)]
    hints += [*(word(a) for a in own), *_lemmas(nodes[i].id)[1:]]
    usable = [hint for hint in hints if " or " not in hint and hint.lower() != name.lower()]
    return f"{name} ({usable[0]})" if usable else name


def _clashes(names: Sequence[str], among: Iterable[int]) -> list[list[int]]:
    places: dict[str, list[int]] = {}
    for i in among:
        places.setdefault(names[i].lower(), []).append(i)
    return [same for same in places.values() if len(same) > 1]


def _line(i: int, nodes: Sequence[NamedNode]) -> list[int]:
    line = []
    while i != -1:
        line.append(i)
        i = nodes[i].parent
    return line


def _lemmas(node_id: str) -> tuple[str, ...]:
    found = wordnet.synset(node_id)
    return found.lemmas if found else ()


def _synsets_above(node_id: str) -> frozenset[str]:
    return wordnet.ancestors(node_id) - {node_id} if wordnet.synset(node_id) else frozenset()
