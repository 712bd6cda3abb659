/* Slot: the place of one object. It exports its memory itself, so it knows at any moment whether somebody does.

   The garbage collector does not see slots, but for those of subclasses. As for handles (`_handle.c`): what a slot
   refers to, such as what a constructor built, is let go of when its pool is closed and its slab dismantled. */

#include "_core.h"

/* -- what the slots of a slab share */

/* Keep what a view shows where it is, taking over the reference. A view is two objects that the garbage collector
   sees, one for each emergency object of the heap; a bytearray is none, and stays where it is while it is exported. */
static int ground_hold(Ground *ground, PyObject *view)
{
    PyObject *behind = PyMemoryView_GET_BASE(view);
    Py_buffer export;
    if (behind == NULL || !PyByteArray_CheckExact(behind)) {
        ground->memory = view;
        return 0;
    }
    int failed = PyObject_GetBuffer(behind, &export, PyBUF_WRITABLE);
    if (!failed)
        ground->memory = export.obj; /* takes over the reference, which is all that ends the export: `ground_let_go` */
    Py_DECREF(view);
    return failed;
}

static void ground_let_go(Ground *ground)
{
    if (ground->memory != NULL && PyByteArray_CheckExact(ground->memory)) {
        Py_buffer export = {.obj = ground->memory};
        PyBuffer_Release(&export);
    } else
        Py_XDECREF(ground->memory);
}

static Ground *ground_new(Core *core, PyObject *slab, PyObject *memory, PyObject *start, Py_ssize_t size)
{
    Ground *ground = PyObject_New(Ground, core->ground);
    if (ground == NULL)
        return NULL;
    ground->slab = ground->memory = ground->near = ground->anchor = NULL;
    ground->size = size;
    if (slab != Py_None && (ground->slab = PyWeakref_NewRef(slab, NULL)) == NULL)
        goto failed;
    PyObject *view = PyMemoryView_FromObject(memory);
    if (view == NULL)
        goto failed;
    Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    ground->start = buffer->buf;
    ground->nbytes = buffer->len;
    if (buffer->readonly || !PyBuffer_IsContiguous(buffer, 'C')) {
        PyErr_SetString(PyExc_TypeError, "the memory of slots must be writable and contiguous");
        Py_DECREF(view);
        goto failed;
    }
    if (ground_hold(ground, view))
        goto failed;
    void *address = PyLong_AsVoidPtr(start);
    if (address == NULL && PyErr_Occurred())
        goto failed;
    ground->shift = (char *)address - ground->start;
    return ground;
failed:
    Py_DECREF(ground);
    return NULL;
}

/* What a slab holds of its ground, and nobody else: as long as it is there, so is the slab. It does not keep the ground,
   which exports the region. */
typedef struct {
    PyObject_HEAD
    Ground *ground; /* borrowed, NULL once that is gone */
} Anchor;

static void ground_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (((Ground *)self)->anchor != NULL)
        ((Anchor *)((Ground *)self)->anchor)->ground = NULL;
    Py_XDECREF(((Ground *)self)->slab);
    ground_let_go((Ground *)self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot ground_slots[] = {{Py_tp_dealloc, ground_dealloc}, {0, NULL}};
PyType_Spec ground_spec = {"aslab._fastpath._core.Ground", sizeof(Ground), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, ground_slots};

static PyObject *anchor_of(Core *core, Ground *ground, PyObject *slab)
{
    if (ground->anchor != NULL)
        return Py_NewRef(ground->anchor);
    Anchor *anchor = PyObject_New(Anchor, core->anchor);
    if (anchor != NULL) {
        anchor->ground = ground;
        ground->anchor = (PyObject *)anchor;
        ground->near = slab;
    }
    return (PyObject *)anchor;
}

static void anchor_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Ground *ground = ((Anchor *)self)->ground;
    if (ground != NULL)
        ground->near = ground->anchor = NULL;
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot anchor_slots[] = {{Py_tp_dealloc, anchor_dealloc}, {0, NULL}};
PyType_Spec anchor_spec = {"aslab._fastpath._core.Anchor", sizeof(Anchor), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, anchor_slots};

/* -- slots */

static int slot_place(Slot *slot, Ground *ground, Py_ssize_t offset)
{
    if (offset < 0 || ground->size < 1 || ground->size > ground->nbytes - offset) {
        PyErr_Format(PyExc_ValueError, "%zd bytes from %zd on are not within the %zd bytes of the region",
                     ground->size, offset, ground->nbytes);
        return -1;
    }
    slot->ground = (Ground *)Py_NewRef((PyObject *)ground);
    slot->memory = ground->start + offset;
    return 0;
}

static int slot_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"slab", "memory", "start", "offset", "size", NULL};
    PyObject *slab, *memory, *start;
    Py_ssize_t offset, size;
    Slot *slot = (Slot *)self;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOnn:Slot", names, &slab, &memory, &start, &offset, &size))
        return -1;
    if (slot->ground != NULL) {
        PyErr_SetString(PyExc_TypeError, "a slot stays where it is");
        return -1;
    }
    Core *core = core_of(Py_TYPE(self));
    Ground *ground = core == NULL ? NULL : ground_new(core, slab, memory, start, size);
    if (ground == NULL)
        return -1;
    int failed = slot_place(slot, ground, offset);
    Py_DECREF(ground);
    return failed;
}

/* Append the next `count` slots of a slab to the list of its slots. */
static PyObject *slot_carve(PyObject *cls, PyObject *args)
{
    PyObject *slots, *slab, *memory, *start;
    Py_ssize_t size, stride, count;
    PyTypeObject *type = (PyTypeObject *)cls;
    if (!PyArg_ParseTuple(args, "O!OOOnnn:carve", &PyList_Type, &slots, &slab, &memory, &start, &size, &stride,
                          &count))
        return NULL;
    Core *core = core_of(type);
    if (core == NULL)
        return NULL;
    Py_ssize_t made = PyList_GET_SIZE(slots);
    PyObject *first = made ? PyList_GET_ITEM(slots, 0) : NULL;
    Ground *ground;
    if (first != NULL && PyObject_TypeCheck(first, core->slot) && ((Slot *)first)->ground != NULL)
        ground = (Ground *)Py_NewRef((PyObject *)((Slot *)first)->ground);
    else if ((ground = ground_new(core, slab, memory, start, size)) == NULL)
        return NULL;
    if (ground->size != size || stride < size || stride < 1 || count < 0 || count > PY_SSIZE_T_MAX / stride - made) {
        PyErr_Format(PyExc_ValueError, "%zd more slots of %zd bytes at each %zd after %zd of %zd bytes", count, size,
                     stride, made, ground->size);
        Py_DECREF(ground);
        return NULL;
    }
    for (Py_ssize_t number = made; number < made + count; number++) {
        Slot *slot = (Slot *)type->tp_alloc(type, 0);
        if (slot == NULL || slot_place(slot, ground, number * stride) || PyList_Append(slots, (PyObject *)slot)) {
            Py_XDECREF(slot);
            Py_DECREF(ground);
            return NULL;
        }
        Py_DECREF(slot);
    }
    PyObject *anchor = slab == Py_None ? Py_NewRef(Py_None) : anchor_of(core, ground, slab);
    Py_DECREF(ground);
    return anchor;
}

static int slot_traverse(PyObject *self, visitproc visit, void *arg)
{
    Extra *extra = ((Slot *)self)->extra; /* only subclasses are seen by the collector */
    Py_VISIT(Py_TYPE(self));
    if (extra != NULL) {
        Py_VISIT(extra->obj);
        Py_VISIT(extra->owner);
        Py_VISIT(extra->kept);
        Py_VISIT(extra->tell);
    }
    return 0;
}

static int slot_clear(PyObject *self)
{
    Extra *extra = ((Slot *)self)->extra;
    if (extra != NULL) {
        Py_CLEAR(extra->obj);
        Py_CLEAR(extra->owner);
        Py_CLEAR(extra->kept);
        Py_CLEAR(extra->tell);
    }
    return 0;
}

static void slot_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Slot *slot = (Slot *)self;
    if (PyType_IS_GC(type))
        PyObject_GC_UnTrack(self);
    if (slot->extra != NULL) {
        slot_clear(self);
        PyMem_Free(slot->extra);
    }
    Py_XDECREF(slot->ground);
    type->tp_free(self);
    Py_DECREF(type);
}

/* -- exports */

/* A view refers to the slot by its `obj`, and the slot has one owner after another: so who keeps `view.obj` gets
   nothing from it. Views are made by `slot_view` alone. */
static int slot_getbuffer(PyObject *Py_UNUSED(self), Py_buffer *view, int Py_UNUSED(flags))
{
    view->obj = NULL;
    PyErr_SetString(PyExc_BufferError, "what is behind a view of a Buffer exports nothing: use the Buffer's view");
    return -1;
}

/* A writable view of bytes, with a managed buffer of its own, which does not count as an export yet. Making it may
   collect garbage, and so run any code: who makes it looks whether the slot is still theirs, and then calls
   `slot_export`. */
PyObject *slot_view(Slot *slot)
{
    if (slot->ground == NULL) {
        PyErr_SetString(PyExc_BufferError, "the memory of this slot was given up");
        return NULL;
    }
    return PyMemoryView_FromMemory(slot->memory, slot->ground->size, PyBUF_WRITE);
}

/* From now on the view is an export of its slot, until it and what was made of it are released. */
void slot_export(Slot *slot, PyObject *view)
{
    PyMemoryViewObject *fresh = (PyMemoryViewObject *)view;
    fresh->mbuf->master.obj = Py_NewRef((PyObject *)slot);
    fresh->view.obj = (PyObject *)slot; /* borrowed, as in every memoryview */
    slot->exports++;
}

/* On any thread, in the garbage collector, with an exception on its way. */
static void slot_releasebuffer(PyObject *self, Py_buffer *Py_UNUSED(view))
{
    Slot *slot = (Slot *)self;
    if (--slot->exports || slot->extra == NULL || slot->extra->tell == NULL)
        return;
    Pending pending;
    PyObject *tell = slot->extra->tell;
    slot->extra->tell = NULL;
    HOLD(pending);
    PyObject *told = PyObject_CallNoArgs(tell);
    if (told == NULL)
        PyErr_WriteUnraisable(tell);
    Py_XDECREF(told);
    Py_DECREF(tell);
    GO_ON(pending);
}

static PyObject *slot_in_use(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    long own = 0;
    if (nargs > 1 || (nargs && (own = PyLong_AsLong(args[0])) == -1 && PyErr_Occurred())) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "in_use() takes the number of own views alone");
        return NULL;
    }
    return PyBool_FromLong(((Slot *)self)->exports > own);
}

/* -- attributes */

Extra *slot_extra(Slot *slot)
{
    if (slot->extra == NULL && (slot->extra = PyMem_Calloc(1, sizeof(Extra))) == NULL)
        PyErr_NoMemory();
    return slot->extra;
}

static PyObject *slot_tell_when_unused(PyObject *self, PyObject *call)
{
    Slot *slot = (Slot *)self;
    if (slot->exports == 0) {
        PyObject *told = PyObject_CallNoArgs(call);
        if (told == NULL)
            return NULL;
        Py_DECREF(told);
    } else {
        Extra *extra = slot_extra(slot);
        if (extra == NULL)
            return NULL;
        Py_XSETREF(extra->tell, Py_NewRef(call));
    }
    Py_RETURN_TRUE;
}

static PyObject *slot_get_extra(PyObject *self, void *offset)
{
    Extra *extra = ((Slot *)self)->extra;
    PyObject *value = extra == NULL ? NULL : *(PyObject **)((char *)extra + (size_t)offset);
    return Py_NewRef(value == NULL ? Py_None : value);
}

static int slot_set_extra(PyObject *self, PyObject *value, void *offset)
{
    Slot *slot = (Slot *)self;
    int empty = value == NULL || value == Py_None;
    if (empty && slot->extra == NULL)
        return 0;
    Extra *extra = slot_extra(slot);
    if (extra == NULL)
        return -1;
    PyObject **place = (PyObject **)((char *)extra + (size_t)offset), *old = *place;
    *place = empty ? NULL : Py_NewRef(value);
    Py_XDECREF(old);
    return 0;
}

/* From now on who holds it is a weak reference, as in Python. -1 with an error. */
int slot_show_owner(Slot *slot)
{
    Handle *holder = slot->extra == NULL ? NULL : slot->extra->holder;
    if (holder == NULL || Py_REFCNT(holder) <= 0) /* none refer to it: it is just going */
        return 0;
    Py_INCREF(holder); /* garbage may be collected, and nothing else but garbage refer to it */
    PyObject *owner = PyWeakref_NewRef((PyObject *)holder, NULL);
    if (owner == NULL || slot->extra->holder != holder) { /* it was freed meanwhile, or somebody else has asked */
        int failed = owner == NULL;
        Py_XDECREF(owner);
        Py_DECREF(holder);
        return failed ? -1 : 0;
    }
    slot->extra->holder = NULL;
    Py_XSETREF(slot->extra->owner, owner);
    Py_DECREF(holder); /* perhaps the last reference: then it is freed now */
    return 0;
}

static PyObject *slot_get_owner(PyObject *self, void *offset)
{
    return slot_show_owner((Slot *)self) ? NULL : slot_get_extra(self, offset);
}

static int slot_set_owner(PyObject *self, PyObject *value, void *offset)
{
    if (((Slot *)self)->extra != NULL)
        ((Slot *)self)->extra->holder = NULL;
    return slot_set_extra(self, value, offset);
}

/* Have the method in Python note that somebody may know the address by a view that has ended, or will. */
int slot_remember(Core *core, Slot *slot, PyObject *view, Origin *home)
{
    if (home == NULL || core->view_gone == NULL) /* the collector has taken the handle or the module apart */
        return 0;
    PyObject *call = PyObject_GetAttr((PyObject *)home, core->view_gone);
    PyObject *done = call == NULL ? NULL : PyObject_CallMethodObjArgs((PyObject *)slot, core->remember, view, call, NULL);
    Py_XDECREF(call);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static PyObject *slot_get_kept(PyObject *self, void *Py_UNUSED(closure))
{
    Extra *extra = ((Slot *)self)->extra;
    return extra == NULL || extra->kept == NULL ? PyTuple_New(0) : Py_NewRef(extra->kept);
}

static int slot_set_kept(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL || !PyTuple_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "kept is a tuple");
        return -1;
    }
    return slot_set_extra(self, PyTuple_GET_SIZE(value) ? value : NULL, (void *)offsetof(Extra, kept));
}

static PyObject *slot_get_slab(PyObject *self, void *Py_UNUSED(closure))
{
    Slot *slot = (Slot *)self;
    if (slot->detached || slot->ground == NULL || slot->ground->slab == NULL)
        Py_RETURN_NONE;
    PyObject *near = slot->ground->near;
    if (near != NULL)
        return Py_REFCNT(near) > 0 ? Py_NewRef(near) : Py_NewRef(Py_None); /* none refer to it: it is just going */
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *slab;
    int alive = PyWeakref_GetRef(slot->ground->slab, &slab);
    return alive < 0 ? NULL : alive ? slab : Py_NewRef(Py_None);
#else
    return Py_NewRef(PyWeakref_GET_OBJECT(slot->ground->slab));
#endif
}

/* Let go of the memory, which may have to be gone before the slot is. */
static void slot_give_up(Slot *slot)
{
    slot->detached = 1;
    if (slot->ground != NULL && slot->exports == 0) {
        slot->memory += slot->ground->shift; /* what is left is an address */
        Py_CLEAR(slot->ground);
    }
}

static int slot_set_slab(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value != Py_None) {
        PyErr_SetString(PyExc_TypeError, "a slot stays in its slab until that is gone: only None can be set");
        return -1;
    }
    slot_give_up((Slot *)self);
    return 0;
}

static PyObject *slot_get_address(PyObject *self, void *Py_UNUSED(closure))
{
    Slot *slot = (Slot *)self;
    return PyLong_FromVoidPtr(slot->memory + (slot->ground == NULL ? 0 : slot->ground->shift));
}

static PyObject *slot_get_size(PyObject *self, void *Py_UNUSED(closure))
{
    Ground *ground = ((Slot *)self)->ground;
    return PyLong_FromSsize_t(ground == NULL ? 0 : ground->size);
}

static PyObject *slot_get_exporter(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self);
}

static int slot_set_exporter(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    Slot *slot = (Slot *)self;
    if (value != NULL || slot->exports) {
        PyErr_SetString(PyExc_BufferError, "a slot exports its memory itself, and gives it up when nobody uses it");
        return -1;
    }
    slot_give_up(slot);
    return 0;
}

static PyMethodDef slot_methods[] = {
    METHOD("carve", slot_carve, METH_VARARGS | METH_CLASS),
    METHOD("in_use", slot_in_use, METH_FASTCALL),
    METHOD("tell_when_unused", slot_tell_when_unused, METH_O),
    METHOD("__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS),
    {NULL, NULL, 0, NULL}};
static PyMemberDef slot_members[] = {{"out", T_BOOL, offsetof(Slot, out), 0, NULL}, {NULL, 0, 0, 0, NULL}};
static PyGetSetDef slot_getset[] = {
    {"address", slot_get_address, NULL, NULL, NULL},
    {"size", slot_get_size, NULL, NULL, NULL},
    {"slab", slot_get_slab, slot_set_slab, NULL, NULL},
    {"exporter", slot_get_exporter, slot_set_exporter, NULL, NULL},
    {"kept", slot_get_kept, slot_set_kept, NULL, NULL},
    {"obj", slot_get_extra, slot_set_extra, NULL, (void *)offsetof(Extra, obj)},
    {"owner", slot_get_owner, slot_set_owner, NULL, (void *)offsetof(Extra, owner)},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot slot_slots[] = {{Py_tp_new, PyType_GenericNew},
                                   {Py_tp_init, slot_init},
                                   {Py_tp_dealloc, slot_dealloc},
                                   {Py_tp_traverse, slot_traverse},
                                   {Py_tp_clear, slot_clear},
                                   {Py_bf_getbuffer, slot_getbuffer},
                                   {Py_bf_releasebuffer, slot_releasebuffer},
                                   {Py_tp_methods, slot_methods},
                                   {Py_tp_members, slot_members},
                                   {Py_tp_getset, slot_getset},
                                   {0, NULL}};
PyType_Spec slot_spec = {"aslab._fastpath._core.Slot", sizeof(Slot), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                         slot_slots};

/* -- the slot of an emergency object */

static void single_dealloc(PyObject *self)
{
    Single *single = (Single *)self;
    Py_CLEAR(single->part);
    Py_CLEAR(single->record);
    Py_CLEAR(single->region);
    slot_dealloc(self);
}

static int single_traverse(PyObject *self, visitproc visit, void *arg)
{
    Single *single = (Single *)self; /* as for slots, only those of subclasses are seen */
    Py_VISIT(single->part);
    Py_VISIT(single->record);
    Py_VISIT(single->region);
    return slot_traverse(self, visit, arg);
}

static int single_clear(PyObject *self)
{
    Single *single = (Single *)self;
    Py_CLEAR(single->part);
    Py_CLEAR(single->record);
    Py_CLEAR(single->region);
    return slot_clear(self);
}

static PyMemberDef single_members[] = {{"part", T_OBJECT, offsetof(Single, part), 0, NULL},
                                       {"record", T_OBJECT, offsetof(Single, record), 0, NULL},
                                       {"region", T_OBJECT, offsetof(Single, region), 0, NULL},
                                       {NULL, 0, 0, 0, NULL}};
static PyType_Slot single_slots[] = {{Py_tp_dealloc, single_dealloc},
                                     {Py_tp_traverse, single_traverse},
                                     {Py_tp_clear, single_clear},
                                     {Py_tp_members, single_members},
                                     {0, NULL}};
PyType_Spec single_spec = {"aslab._fastpath._core.EmergencySlot", sizeof(Single), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, single_slots};
