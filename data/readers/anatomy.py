"""Names of structures that may leave a file: those made of anatomical words, and of nothing else.

Segmentations name their structures in free text, and free text may name a person ("GTV Mustermann"). So a
name passes when each of its words is in this vocabulary of anatomy, lesions and radiotherapy targets, or a
number; any other stays behind, and its structure is known by its number. A collection that wants other names
declares them in `mask_classes`: they are matched to the file's, and it is the collection's that leave.

Source: words of TotalSegmentator's classes, of AAPM TG-263, and of DICOM PS3.16 CID 7151 to 7159 without
eponyms.
"""

from __future__ import annotations

import re

_TEXT = """
abdomen abdominal abdominopelvic abnormal abscess accessory accumbens acromioclavicular adenohypophysis
adrenal airway amygdala and angioma ankle ant anterior anulus anus aorta aortic apex appendage appendix
aqueduct arachnoid arch arcuate area arm arterial arteriovenous artery articular ascending atrial
atrioventricular atrium auditory auricle auricular autochthon axilla axillary azygos back background base
basilar basilic bifurcation bilat bilateral bile biliary bladder block blood body bone bones boost border
bowel brachial brachiocephalic brain brainstem branch breast bronchial bronchus bulb buttock calcaneus
calcification calf callosum calyx canal capillary capsule cardiac carina carotid carpal cartilage caudate
cava cavity cavum cecum cell central cerebellar cerebellum cerebral cerebrospinal cervical cervix chamber
cheek chest chiasm cingulum circumflex clavicle clavicula clot coccyx cochlea coeliac coil colon column
commissure common communicating condyle confluence consolidation constrictor contralateral cor cord core
cornea coronary corpus cortex corticospinal costal couch cranial cricoid csf ct ctv cuneiform cyst deep
deltoid dental descending diaphragm diencephalon digital disc disk distal dorsal dose duct ductus
duodenum dura ear ed edema effusion elbow embolus emphysema endocardium endometrium enhancement enhancing
entorhinal epididymis epiglottis esophageal esophagus et ethmoid external extremity eye eyeball eyelid
eyes face facial fascia fat fdg female femoral femoris femur fibula filling finger first fissure fistula
flair flank fluid focus foot foramen forearm fornix fossa fourth fovea fracture frontal gallbladder
ganglion gas gastric ggo gland glands glass globe globus glottis gluteus gm gray great greater grey gross
ground gtv hair hand head heart hemisphere hemorrhage hepatic high hilar hilum hip hippocampus horn
humerus hyoid hypogastric hypopharynx hypothalamus iliac iliocostalis iliopsoas ilium imaging implant in
index inf infarct inferior infiltration inflammation infra inguinal inner insula intercostal intermediate
internal interventricular intestine intra intracranial intrahepatic invasion ipsilateral iris ischemia
ischium isthmus itv ivc jaw jejunum joint jugular kidney kidneys knee l la lacrimal lacuna lad large
larynx lat lateral latissimus layer lcx left leg lens lesion lesions lesser lge ligament limb lingual lip
lips liver lobe longitudinal low lower lt lumbar lumen lung lungs lv lymph macula main malignant
malleolus mammary mandible margin mass mastoid mater matter maxilla maximus med medial median mediastinum
medius membrane meninges meniscus mesenteric metacarpal metastasis metatarsal mid midbrain middle minimus
minor mitral mouth mr mucosa multifidus muscle muscles myo myocardium nasal nasopharynx ncr neck necrosis
necrotic needle neoplasm nerve nerves node nodes nodule nodules non nose nostril nuclei nucleus oar
object occipital oesophagus of omentum on ophthalmic optic oral orbit orbital organ oropharynx ostium
outer outflow outline ovarian ovary palate pallidum pallidus pancreas pancreatic papillary parathyroid
parenchyma parietal parotid pars particulate patella patient pectoralis peduncle pelvic pelvis penile
penis perfusion periaortic pericardial pericardium peripheral peritoneum pet petrous phantom pharynx
pineal pituitary placenta plane plaque plate pleura pleural plexus pneumothorax polyp pons portal post
posterior posterolateral prevertebral primary process prostate proximal prv psoas pterygoid ptv pubis
pulmonary pupil putamen quadrant quadratus quadriceps r ra radial radius rca rectal rectum region renal
resection residual retina retroperitoneal rib ribs right ring root rotator rt rv sacral sacrum salivary
sartorius scalp scapula sclera scrotum second segment sella seminal septum serratus sheath shoulder
sigmoid sinus sinuses skin skull small soft solid space sphenoid spinae spinal spine spleen splenic stem
stent sternocleidomastoid sternum stomach structure subclavian subcutaneous sublingual submandibular
subscapularis substance subtraction sup superficial superior supra supraspinatus suture svc t1 t2 table
talus target tc temporal temporalis temporomandibular tendon tensor testicle testicular testis thalamus
the thigh third thoracic thorax thrombus thumb thymus thyroid tibia tibial tissue to toe tongue tonsil
tooth torso total trachea tract transition transverse trapezius trunk tube tumor tumoral tumour ulna
ulnar umbilical uncinate unknown upper ureter urethra urinary uterine uterus vagina valve vascular vein
veins vena ventral ventricle ventricles ventricular vertebra vertebrae vertebral vesical vesicle vesicles
vessel vessels vestibular viable vitreous vocal vulva wall water white whole with without wm wrist wt
zone zygoma zygomatic
"""
_WORDS = frozenset(_TEXT.split())
_SHORT = re.compile(r"(?:[ctls]|seg|segment)\d{1,2}|[gcpi]tv[pn]?\d{0,2}")  # L5, segment3, GTVp
_NUMBER = re.compile(r"\d{1,2}")
_LONGEST = 64  # characters


def normal(name: str) -> str:
    """A name for comparison: lower case, single blanks between its words; `leftKidney` is two words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.findall(r"[^\W_]+", spaced.lower()))


def allowed(name: str) -> str | None:
    """The name in its normal form when it may leave, else None. One short number may be in it."""
    text = normal(name)
    words = [word for word in text.split() if not _NUMBER.fullmatch(word)]
    numbers = len(text.split()) - len(words)
    good = all(word in _WORDS or _SHORT.fullmatch(word) for word in words)
    return text if words and good and numbers <= 1 and len(text) <= _LONGEST else None
